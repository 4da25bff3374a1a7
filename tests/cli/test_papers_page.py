"""docs/papers.md: its example is a paper that composes and can be decided, and its tables are complete."""

import re

import pytest
import yaml

from triptych.config.check import CONFIGS
from triptych.config.compose import compose_command
from triptych.config.metric import SAMPLE_METRICS
from triptych.study.papers.claim import OF_THE_BOUND, OF_THE_RUN, TAKES
from triptych.study.papers.paper import read_claims
from triptych.study.papers.sweep import claims_of

PAGE = (CONFIGS.parent / "docs" / "papers.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_composes_and_can_be_decided(tmp_path):
    example = next(text for text in BLOCKS if "name: ddim_steps" in text)
    assert not (CONFIGS / "paper" / "ddim_steps.yaml").exists(), "it is not in the list"
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "ddim_steps.yaml").write_text(example)
    cfg = compose_command("train", ["paper=ddim_steps", f"hydra.searchpath=[file://{tmp_path}]"])
    facts = claims_of(cfg, {}, False)
    assert cfg.name == "ddim_steps"
    claims = read_claims(facts["paper"], facts["paper_axes"])
    assert [c.name for c in claims[0].contrasts] == ["steps=20 − steps=100", "steps=10 − steps=20"]
    assert [c.name for c in claims[1].contrasts] == ["eta=1 − eta=0"]


@pytest.mark.parametrize("text", BLOCKS)
def test_every_block_is_yaml(text):
    assert yaml.safe_load(text)


def test_every_statistic_metric_and_tolerance_is_on_the_page():
    names = {
        *OF_THE_BOUND,
        *OF_THE_RUN,
        *SAMPLE_METRICS,
        *TAKES,
        *(key for keys in TAKES.values() for key in keys),
    }
    told = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))
    assert names <= told, names - told


def test_the_page_of_results_knows_every_paper():
    """As run or as not run yet; `triptych-report --results docs/results.md logs/sweeps` writes it."""
    text = (CONFIGS.parent / "docs" / "results.md").read_text()
    for file in (CONFIGS / "paper").glob("*.yaml"):
        assert re.search(rf"[`\[]{file.stem}[`:]", text.replace("\\_", "_")), file.stem
