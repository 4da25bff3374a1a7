"""README, docs and comments of configs: links have targets, commands and examples compose."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from triptych.cli.arguments import read_command_line
from triptych.config.check import CONFIGS
from triptych.config.compose import compose_command
from triptych.config.metric import SAMPLE_METRICS
from triptych.run.sweep_record import SweepRecord
from triptych.study.papers.claim import OF_THE_BOUND, OF_THE_RUN, STATISTICS, TOLERANCES
from triptych.study.papers.paper import claim_entries, read_claims
from triptych.study.rounds import composed_grid_jobs

HOUSE = CONFIGS.parent
PAGES = [HOUSE / "README.md", *sorted(HOUSE.glob("docs/*.md"))]
# Luo 2022: equations that are cited by number, and as what; another is looked up there before it
# stands here
TUTORIAL = {
    31: "the forward step", 45: "consistency terms", 58: "denoising matching", 69: "x_t from x_0",
    84: "the posterior", 94: "the reverse step's mean", 99: "the objective in x0", 109: "SNR",
    111: "the neural SNR", 115: "x0 of a noise", 130: "the objective in epsilon", 131: "score and noise",
    132: "score and noise", 133: "Tweedie: x0 of a score", 148: "the objective in the score",
}  # fmt: skip
CITED = re.compile(r"(?:[Tt]utorial(?:'s)?,? |\()eqs?\. ([0-9][0-9, and-]*)")
OTHERS = ("sde.py", "edm2.py")  # cite Song et al. and Karras et al. in this way
COMMAND = re.compile(r"triptych-(train|evaluate|sample) +([^`#;\n]+)")


@pytest.fixture(autouse=True)
def own_package(trusting):
    """The package of docs/own-code.md, trusted as on that page."""
    trusting("mylab", folder=HOUSE / "examples")


def links(page: Path) -> list[Path]:
    return [
        (page.parent / target).resolve()
        for target in re.findall(r"\]\(([^)#]+)", page.read_text())
        if "://" not in target
    ]


def commands() -> list[tuple[str, str]]:
    """Return (module, arguments) of each command in the text, once.

    Commands with files alone are composed by other tests.
    """
    texts = [p.read_text() for p in [*PAGES, *sorted(CONFIGS.rglob("*.yaml"))]]
    found = [
        (door, line.split("  ")[0].strip())
        for text in texts
        for door, line in COMMAND.findall(text)
    ]
    other = r"resume=|-sc |NAME \.\.\.|^(-m )?(paper|ablation|experiment)=\w+$"
    return sorted({(d, a) for d, a in found if "=" in a and not re.search(other, a)})


def test_documentation_links_resolve_and_reach_every_page():
    there = {page: links(page) for page in PAGES}
    lost = [(page.name, str(to)) for page, ends in there.items() for to in ends if not to.exists()]
    assert not lost
    linked = {to for ends in there.values() for to in ends}
    assert set(PAGES[1:]) | set(HOUSE.glob("docs/images/*")) <= linked


def test_tutorial_equation_numbers_cited_are_in_checked_list():
    """Two equation numbers once contradicted each other: Langevin's stood after guidance's."""
    files = [*PAGES, *sorted(HOUSE.glob("docs/*.py")), *sorted(HOUSE.glob("src/triptych/**/*.py"))]
    found: dict[int, str] = {}
    for file in files:
        if file.name not in OTHERS:
            for said in CITED.findall(file.read_text()):
                found |= {int(number): file.name for number in re.findall(r"[0-9]+", said)}
    assert len(found) > 10
    assert not {number: name for number, name in found.items() if number not in TUTORIAL}


def test_documentation_contains_commands():
    assert len(commands()) > 40


@pytest.mark.parametrize("door, arguments", commands(), ids=str)
def test_a_command_of_the_documents_composes(door, arguments):
    """Of a sweep, the first value of each choice is composed."""
    overrides = read_command_line(shlex.split(arguments), "train").overrides
    first = []
    for override in OverridesParser.create().parse_overrides(overrides):
        line = override.input_line
        if override.is_sweep_override():
            line = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        first.append(line)
    compose_command(door, first)


PAPERS = (HOUSE / "docs" / "papers.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAPERS, re.DOTALL)


def test_papers_page_example_composes_with_decidable_claims(tmp_path):
    example = next(text for text in BLOCKS if "name: ddim_steps" in text)
    assert not (CONFIGS / "paper" / "ddim_steps.yaml").exists(), "it is not in the list"
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "ddim_steps.yaml").write_text(example)
    cfg = compose_command("train", ["paper=ddim_steps", f"hydra.searchpath=[file://{tmp_path}]"])
    facts = claim_entries(cfg, composed_grid_jobs(cfg), SweepRecord(), False)
    assert cfg.name == "ddim_steps"
    claims = read_claims(facts["paper"], facts["paper_axes"])
    assert [c.name for c in claims[0].contrasts] == ["steps=20 − steps=100", "steps=10 − steps=20"]
    assert [c.name for c in claims[1].contrasts] == ["eta=1 − eta=0"]


@pytest.mark.parametrize("text", BLOCKS)
def test_papers_page_code_block_is_valid_yaml(text):
    assert yaml.safe_load(text)


def test_papers_page_lists_every_statistic_metric_and_tolerance():
    names = {*OF_THE_BOUND, *OF_THE_RUN, *SAMPLE_METRICS, *STATISTICS, *TOLERANCES}
    told = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", PAPERS))))
    assert names <= told, names - told


def test_results_page_mentions_every_paper_config():
    """Each paper is there as run or as not yet run.

    `triptych-report --results docs/results.md logs/sweeps` writes the page.
    """
    text = (HOUSE / "docs" / "results.md").read_text()
    for file in (CONFIGS / "paper").glob("*.yaml"):
        assert re.search(rf"[`\[]{file.stem}[`:]", text.replace("\\_", "_")), file.stem
