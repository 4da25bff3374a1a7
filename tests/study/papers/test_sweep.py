"""A sweep of a paper's claims: refusals before it starts, and records of changed claims."""

import copy
import functools
import socket
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from tests.refusal import refused
from triptych.config.check import CONFIGS, check_keys
from triptych.config.identity import register_resolvers
from triptych.errors import UserError
from triptych.run.single import request_single
from triptych.run.sweep_record import SweepRecord
from triptych.study.papers.paper import claim_entries, describe_machine, set_scale
from triptych.study.rounds import composed_grid_jobs

NAMES = sorted(file.stem for file in (CONFIGS / "paper").glob("*.yaml"))


@pytest.fixture(autouse=True)
def hydra():
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


@functools.cache
def composed(name: str):
    return compose("train", [f"paper={name}"], return_hydra_config=True)


def asked(name: str, *values: str):
    cfg = copy.deepcopy(composed(name))
    ConfigLoaderImpl._apply_overrides_to_config(
        OverridesParser.create().parse_overrides([*values]), cfg
    )
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_readonly(cfg.hydra, False)  # as it is while a sweep is being set up
    return cfg


def facts_of(cfg, before: SweepRecord, any_result: bool):
    """Return what a sweep of the grid of ``cfg`` records of its claims."""
    return claim_entries(cfg, composed_grid_jobs(cfg), before, any_result)


@pytest.mark.parametrize(
    "key, message",
    [
        ("+paper.arxv=2107", "no such key; did you mean paper.arxiv?"),
        ("+paper.claims.falls.withn=0.1", "no such key; did you mean paper.claims.falls.within?"),
        ("paper.minutes=0", "must be a number above 0"),
    ],
)
def test_typo_in_paper_file_suggests_nearest_key(key, message):
    cfg = asked("vdm_steps", key)
    assert refused(lambda: check_keys(cfg, cfg.hydra), message).startswith(key.lstrip("+"))


def test_numeric_key_in_claim_is_refused():
    cfg = asked("vdm_steps")
    with open_dict(cfg):
        cfg.paper.claims.falls[20] = 6.84  # that is to stand below ``published``
    refused(
        lambda: check_keys(cfg, cfg.hydra),
        "paper.claims.falls.20=6.84 (in paper=vdm_steps): no such key",
    )


@pytest.mark.parametrize("name", NAMES)
def test_shipped_paper_claims_are_decidable_by_its_sweep(name):
    cfg = asked(name)
    check_keys(cfg, cfg.hydra)
    assert cfg.name == name, "what its directory is called"
    found = facts_of(cfg, SweepRecord(), False)
    assert found["paper_name"] == name and len(found["paper_axes"]["seed"]) >= 3
    for claim in found["paper"]["claims"].values():
        assert claim["says"][-1] == "."


def test_paper_without_multirun_is_refused():
    with pytest.raises(UserError, match="paper=vdm_steps: only a sweep compares settings; add -m"):
        request_single(asked("vdm_steps"))


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["+paper.claims.falls.metric=recall"], "metric=recall: no run of this sweep records it"),
        (
            ["until=decided"],
            "paper: the settings and seeds of a paper are fixed; do not pass until",
        ),
        (["+hydra.sweeper.tune.seed='7,8'"], "paper: the settings and seeds of a paper are fixed"),
    ],
)
def test_paper_sweep_refuses_undecidable_overrides(overrides, said):
    refused(lambda: facts_of(asked("vdm_steps", *overrides), SweepRecord(), False), said)


def test_unknown_scale_is_refused():
    for paper in ("edm_heun", "vdm_steps"):
        with pytest.raises(
            UserError, match=f"scale=paper: paper={paper} has no such scale; use scale=small"
        ):
            set_scale(asked(paper, "scale=paper"))
    cfg = compose("train", ["scale=paper"], return_hydra_config=True)
    refused(lambda: set_scale(cfg), "scale=paper: paper=None has no such scale; use scale=small")


def test_set_scale_replaces_grid_keys_and_adds_shared_ones():
    cfg = asked("vdm_steps", "scale=paper")
    with open_dict(cfg):
        cfg.hydra.sweeper.scales = {"paper": {"bound.steps": "10,null", "data": "digits"}}
    assert set_scale(cfg) == ["data"], "what all runs share is in no run's name"
    params = {"seed": "1,2,3,4,5,6", "bound.steps": "10,null", "data": "digits"}
    assert dict(cfg.hydra.sweeper.params) == params


def test_claims_changed_is_recorded_after_first_result():
    recorded = facts_of(asked("vdm_steps"), SweepRecord(), False)
    before = SweepRecord.from_dict(recorded)
    assert "claims_changed" not in facts_of(asked("vdm_steps"), before, any_result=True)
    other = asked("vdm_steps", "paper.claims.saturates.within=0.2")
    assert "claims_changed" not in facts_of(other, before, any_result=False), (
        "nothing was known yet"
    )
    changed = facts_of(other, before, any_result=True)
    assert changed["claims_changed"]
    assert facts_of(other, SweepRecord.from_dict(changed), any_result=True)["claims_changed"], (
        "for ever"
    )
    then = replace(before, paper_settings="then")
    assert facts_of(asked("vdm_steps"), then, any_result=True)["paper_settings"] == "then", (
        "of ended runs"
    )
    now = facts_of(asked("vdm_steps"), then, any_result=False)
    assert now["paper_settings"] == before.paper_settings
    forced = facts_of(asked("vdm_steps", "force=true"), then, any_result=True)
    assert forced["paper_settings"] == before.paper_settings, "of runs that are started over"
    more = asked("vdm_steps")
    more.hydra.sweeper.params.seed += ",7"
    assert facts_of(more, before, any_result=True)["claims_changed"], "looked at, then gone on"
    words = asked("vdm_steps", "paper.claims.saturates.says='It saturates.'")
    assert "claims_changed" not in facts_of(words, before, any_result=True)


def test_paper_axes_keep_finished_seeds_left_out_of_command():
    before = SweepRecord.from_dict(facts_of(asked("vdm_steps"), SweepRecord(), False))
    fewer = asked("vdm_steps")
    fewer.hydra.sweeper.params.seed = "1"
    facts = facts_of(fewer, before, any_result=True)
    assert facts["paper_axes"] == before.paper_axes and "claims_changed" not in facts
    assert facts_of(fewer, before, any_result=False)["paper_axes"]["seed"] == ["1"]


def test_machine_description_omits_host_name():
    assert "cores" in describe_machine() and socket.gethostname() not in describe_machine()
