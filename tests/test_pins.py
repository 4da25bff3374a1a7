"""Pinned versions match the ranges of pyproject.toml, for each Python that it names."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOUSE = Path(__file__).parents[1]
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
FILES = sorted((HOUSE / "requirements").glob("py*.txt"))


def pins(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines)
    }


def test_each_python_version_has_requirements_file():
    workflow = (HOUSE / ".github" / "workflows" / "ci.yml").read_text()
    versions = re.findall(r'"(3\.\d+)"', workflow)
    assert [f"py{v.replace('.', '')}" for v in versions] == [file.stem for file in FILES]
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    assert versions == [f"3.{minor}" for minor in range(int(low), int(high))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_dependency_is_pinned_within_its_range(file):
    pinned = pins(file)
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for lines in extras for line in lines)]:
        wanted = Requirement(line)
        if wanted.name != PROJECT["name"]:
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), (
                line,
                file.name,
            )
