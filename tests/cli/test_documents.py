"""What README, docs and the comments of configs promise: links lead somewhere, commands compose."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from triptych.cli.arguments import as_hydra_wants
from triptych.config import trust
from triptych.config.check import CONFIGS, check_keys
from triptych.config.names import register_resolvers

HOUSE = CONFIGS.parent
PAGES = [HOUSE / "README.md", *sorted(HOUSE.glob("docs/*.md"))]
COMMAND = re.compile(r"triptych-(train|evaluate|sample) +([^`#;\n]+)")


@pytest.fixture(autouse=True)
def own_package(monkeypatch):
    """The package of docs/own-code.md, as that page has it trusted."""
    monkeypatch.syspath_prepend(str(HOUSE / "examples"))
    monkeypatch.setenv("TRIPTYCH_TRUST", "mylab")
    trust.trusted.cache_clear()
    yield
    trust.trusted.cache_clear()


def links(page: Path) -> list[Path]:
    return [
        (page.parent / target).resolve()
        for target in re.findall(r"\]\(([^)#]+)", page.read_text())
        if "://" not in target
    ]


def commands() -> list[tuple[str, str]]:
    """(door, arguments) as they stand in the text, each once."""
    texts = [p.read_text() for p in [*PAGES, *sorted(CONFIGS.rglob("*.yaml"))]]
    found = [(door, line.split("  ")[0].strip()) for text in texts for door, line in COMMAND.findall(text)]
    return sorted({(d, a) for d, a in found if "=" in a and not re.search(r"resume=|-sc |NAME \.\.\.", a)})


def test_links_lead_somewhere_and_leave_out_no_page_or_picture():
    there = {page: links(page) for page in PAGES}
    lost = [(page.name, str(to)) for page, ends in there.items() for to in ends if not to.exists()]
    assert not lost
    linked = {to for ends in there.values() for to in ends}
    assert set(PAGES[1:]) | set(HOUSE.glob("docs/images/*")) <= linked


def test_there_are_commands():
    assert len(commands()) > 40


@pytest.mark.parametrize("door, arguments", commands(), ids=str)
def test_a_command_of_the_documents_composes(door, arguments):
    """A sweep's with the first value of each of its choices."""
    register_resolvers()
    overrides = as_hydra_wants([a for a in shlex.split(arguments) if a != "-m"], "train")
    first = []
    for override in OverridesParser.create().parse_overrides(overrides):
        line = override.input_line
        if override.is_sweep_override():
            line = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        first.append(line)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(door, overrides=first, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        if door == "train":
            check_keys(cfg, cfg.hydra)
