"""A stranger's checkpoint or directory at every door that takes one: it is refused, and nothing happens."""

import os

import pytest

from triptych.errors import UserError

from .strangers import attacks, configuration, marks, put, save_checkpoint, save_run

CACHES = ("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
KINDS = ("command", "file", "pickle")


@pytest.fixture(scope="module")
def config():
    return configuration()


def refused_in_one_line(result, *words):
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["evaluate", "sample", "resume", "trained"])
def test_at_the_doors(door, root, config, which, kind):
    """Each of the three attacks that once worked; refused before torch is imported, so that it is quick."""
    evil = put(config, "data", attacks(root)[kind])
    if which in ("evaluate", "sample"):
        path = save_checkpoint(root / "x.ckpt", evil)
        result = door(f"triptych.cli.{which}", f"ckpt={path}", timeout=60)
    elif which == "resume":
        result = door("triptych.cli.train", f"resume={save_run(root / 'theirs', evil)}", timeout=60)
        assert sorted(os.listdir(root / "theirs")) == ["config.yaml", "provenance.json"]
    else:
        theirs = save_run(root / "theirs", evil, "finished")
        save_checkpoint(theirs / "checkpoints" / "last.ckpt", evil)
        result = door("triptych.cli.train", f"trained={theirs}", "logger=csv", timeout=60)
    refused_in_one_line(result, "data", "_target_=triptych.run.", "not a class that a configuration may name")
    assert not marks(root)


RING = ["data=ring", "denoiser=mlp"]
DIGITS = ["data=digits", "denoiser=resnet"]
GUIDES = {
    "guide": [*RING, "guidance=auto", "guide={}"],
    "guidance.weak": [*RING, "guidance=auto", "guidance.weak={}"],
    "guidance.classifier": [*RING, "guidance=classifier", "guidance.classifier={}"],
    "measures.classifier": [*DIGITS, "measures.n=8", "measures.classifier={}"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", GUIDES)
def test_a_guide_or_a_classifier(prepared, root, which, kind):
    """As the job's process opens them; the attack lies in what the guide itself is built of."""
    from triptych.run.execute import execute

    keys = GUIDES[which]
    config = configuration(data=keys[:2])
    path = save_checkpoint(root / "x.ckpt", put(config, "schedule", attacks(root)[kind]))
    with pytest.raises(UserError, match="_target_=triptych.run.*not a class") as caught:
        execute(prepared(*(key.format(path) for key in keys)))
    assert "\n" not in str(caught.value) and not marks(root)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place",
    [
        "sampler",
        "callbacks.x",
        "callbacks.ema",
        "metrics",
        "metrics.x",
        "logger.x",
        "trainer.plugins",
        "schedule.gamma_min",
        "data.x",
    ],
)
def test_wherever_it_lies(root, config, place, kind):
    """Also inside a list, a group, and behind Hydra's other keys."""
    from triptych.run.untrusted import check_config

    node = attacks(root)[kind]
    for form in (node, [node], [[{"deep": node}]], {"_partial_": True} | node, {"_convert_": "all"} | node):
        with pytest.raises(UserError):
            check_config(put(config, place, form), "x")
    assert not marks(root)


@pytest.mark.parametrize(
    "extra",
    [
        {"_args_": ["x"]},
        {"_recursive_": False},
        {"_mode_": "x"},
        {"__class__": "x"},
    ],
)
def test_of_hydras_keys_only_the_harmless_are_read(config, extra):
    from triptych.run.untrusted import check_config

    with pytest.raises(UserError, match=next(iter(extra))):
        check_config(put(config, "data", config["data"] | extra), "x")


@pytest.mark.parametrize(
    "key",
    ["plugins", "callbacks", "default_root_dir", "logger", "profiler", "enable_checkpointing", "strategy"],
)
def test_the_trainer_is_told_plain_values_of_known_keys(config, key):
    from triptych.config.build import check_targets

    value = {"_target_": "triptych.networks.mlp.MLP"} if key in ("strategy", "profiler") else "pytorch"
    with pytest.raises(UserError, match=f"trainer.{key}"):
        check_targets(put(config, f"trainer.{key}", value))


@pytest.mark.parametrize("key", ["save_dir", "dir", "settings", "config", "id", "resume", "experiment"])
def test_so_is_wandb(config, key):
    from triptych.config.build import check_targets

    node = {"_target_": "pytorch_lightning.loggers.WandbLogger", "mode": "offline", key: "/elsewhere"}
    with pytest.raises(UserError, match=f"logger.wandb.{key}"):
        check_targets(put(config, "logger", {"wandb": node}))


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("data", "triptych.networks.mlp.MLP"),
        ("model", "triptych.data.mixture.Ring"),
        ("sampler", "triptych.callbacks.ema.EMA"),
        ("optimizer", "pytorch_lightning.Trainer"),
        ("callbacks.x", "pytorch_lightning.loggers.WandbLogger"),
        ("metrics.x", "triptych.networks.mlp.MLP"),
        ("trainer", "torch.optim.SGD"),
    ],
)
def test_a_class_is_of_its_place(config, place, target):
    from triptych.config.build import check_targets

    with pytest.raises(UserError, match=f"{place}._target_={target}: use a class made from "):
        check_targets(put(config, place, {"_target_": target}))


def test_references_are_not_resolved(door, root, config, monkeypatch):
    """``${oc.env:...}`` would hand over what only this user's environment knows."""
    monkeypatch.setenv("SECRET", "hunter2")
    evil = put(config, "data.root", "${oc.env:SECRET}")
    path = save_checkpoint(root / "x.ckpt", evil)
    for arguments in (
        ["triptych.cli.evaluate", f"ckpt={path}"],
        ["triptych.cli.train", f"resume={save_run(root / 'a', evil)}"],
        ["triptych.cli.train", f"trained={save_run(root / 'b', evil, 'finished')}"],
    ):
        result = door(*arguments, timeout=60)
        refused_in_one_line(result, "data.root", "interpolation is not allowed")
        assert "hunter2" not in result.stdout + result.stderr


def test_text_that_looks_like_a_reference_stays_text():
    """An object gets the text of its configuration, whoever wrote it."""
    from triptych.config.build import build

    made = build({"_target_": "triptych.data.folder.ImageFolder", "root": "${oc.env:HOME}"}, "data")
    assert str(made.root) == "${oc.env:HOME}"


@pytest.mark.parametrize("which", ["evaluate", "resume", "trained"])
def test_nothing_is_downloaded_to_where_a_stranger_says(root, config, which, monkeypatch):
    from torchvision import datasets

    from triptych.run.directory import RunDirectory
    from triptych.run.execute import execute
    from triptych.run.reopen import reopen
    from triptych.run.untrusted import OWN

    monkeypatch.delenv(OWN, raising=False)
    asked = []
    monkeypatch.setattr(datasets, "MNIST", lambda *a, **k: asked.append(k.get("download")))
    node = {"_target_": "triptych.data.mnist.Mnist", "root": str(root / "mark"), "download": True}
    evil = put(config, "data", node)
    theirs = save_run(root / "theirs", evil, "finished" if which == "trained" else "")
    path = save_checkpoint(theirs / "checkpoints" / "last.ckpt", evil)
    with pytest.raises(UserError, match="data.root"):
        if which == "evaluate":
            reopen(str(path))
        elif which == "resume":
            execute(RunDirectory(theirs))
        else:
            from triptych.data.build import build_data
            from triptych.run.untrusted import adopt

            mine = configuration(f"trained={theirs}")
            adopt(mine, {}, [])
            build_data(mine)
    assert not marks(root) and not any(asked)


def test_a_link_that_leads_out_of_a_run(door, root, config):
    """The lock would be truncated through it, a log appended to."""
    theirs = save_run(root / "theirs", config)
    mine = root / "mine.txt"
    mine.write_text("precious")
    for name in (".lock", "train.log", "samples"):
        (theirs / name).symlink_to(mine)
        result = door("triptych.cli.train", f"resume={theirs}", timeout=60)
        refused_in_one_line(result, f"theirs/{name}", "leads out of the run's directory")
        (theirs / name).unlink()
    assert mine.read_text() == "precious"


def test_a_finished_runs_checkpoint_is_its_own(root, config):
    from triptych.run.directory import RunDirectory
    from triptych.run.initialization import read_other

    theirs = RunDirectory(save_run(root / "theirs", config, "finished"))
    theirs.write("summary.json", {"status": "finished", "checkpoint": str(root / "other.ckpt")})
    save_checkpoint(root / "other.ckpt", config)
    with pytest.raises(UserError, match="checkpoints/last.ckpt"):
        read_other("trained", str(theirs.path), None, "")


@pytest.mark.parametrize("missing", ["data", "model", "bound", "threads", "objective"])
def test_a_configuration_that_is_none(root, config, missing):
    from triptych.run.reopen import reopen

    for value in (None, "x", 3, [], {"a": 1}):
        evil = put(config, missing, value)
        with pytest.raises(UserError) as caught:
            reopen(str(save_checkpoint(root / "x.ckpt", evil)))
        assert "\n" not in str(caught.value)


def test_an_honest_checkpoint_is_opened(root, config):
    from triptych.data.build import build_data
    from triptych.run.model import build_model
    from triptych.run.reopen import reopen

    state = build_model(config, build_data(config)).state_dict()
    opened = reopen(str(save_checkpoint(root / "x.ckpt", config, state)), weights="raw")
    assert all(opened.model.state_dict()[name].equal(value) for name, value in state.items())
    assert opened.config == config


def test_a_trusted_package(root, config, monkeypatch):
    """Its classes may be named, its functions and what it imports may not."""
    from triptych.config import build, trust

    package = root / "lab_nets"
    package.mkdir()
    (package / "__init__.py").write_text("from subprocess import Popen\nfrom lab_nets.net import Net\n")
    (package / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width=1):\n"
        "        super().__init__()\n        self.width = width\ndef run(width=1):\n    raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(str(root))
    for name in ("lab_nets.Net", "lab_nets.net.Net"):
        with pytest.raises(UserError, match="not a class"):
            build.build({"_target_": name, "width": 3}, "denoiser.network")
    monkeypatch.setenv("TRIPTYCH_TRUST", "other, lab_nets")
    trust.trusted.cache_clear()
    try:
        for name in ("lab_nets.Net", "lab_nets.net.Net"):
            assert build.build({"_target_": name, "width": 3}, "denoiser.network").width == 3
        for name in (
            "lab_nets.Popen",
            "lab_nets.net.run",
            "lab_nets.net.nn.Linear",
            "lab_netsx.Net",
            "lab_nets",
        ):
            with pytest.raises(UserError):
                build.build({"_target_": name}, "denoiser.network")
    finally:
        trust.trusted.cache_clear()


def test_trust_is_read_from_the_clones_own_project_file(tmp_path, monkeypatch):
    from triptych.config import trust

    file = tmp_path / "pyproject.toml"
    file.write_text('[tool.triptych]\ntrust = ["my_lab"]\n')
    monkeypatch.setattr(trust, "PYPROJECT", file)
    monkeypatch.delenv("TRIPTYCH_TRUST", raising=False)
    trust.trusted.cache_clear()
    try:
        assert trust.trusted() == ("my_lab",)
    finally:
        trust.trusted.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["evaluate", "sample", "resume"])
def test_an_honest_file_under_watch(root, config, which):
    """The doors themselves write where they are told, run nothing and unpickle nothing."""
    import subprocess
    import sys
    from pathlib import Path

    from triptych.data.build import build_data
    from triptych.run.model import build_model

    state = build_model(config, build_data(config)).state_dict()
    theirs = save_run(root / "theirs", config)
    path = save_checkpoint(root / "x.ckpt", config, state)
    arguments = {
        "evaluate": ["triptych.cli.evaluate", f"ckpt={path}", f"out={theirs}/figures.json"],
        "sample": ["triptych.cli.sample", f"ckpt={path}", "n=4", "sampler.steps=2", f"out={theirs}/samples"],
        "resume": ["triptych.cli.train", f"resume={theirs}"],
    }[which]
    result = subprocess.run(
        [sys.executable, "-B", Path(__file__).with_name("watch.py"), theirs, root / "log", *arguments],
        capture_output=True,
        text=True,
        cwd=theirs,
        # caches and temporary files of the libraries
        env=os.environ | dict.fromkeys(CACHES, str(theirs)),
    )
    assert result.returncode == 0, result.stderr
    # of ours the commit, of matplotlib's the fonts, of torch's the machine
    usual = ("git", "fc-list", "nvidia-smi", "uname", "lscpu")
    seen = [s for s in (root / "log").read_text().splitlines() if not any(f"'{a}'" in s for a in usual)]
    assert seen == [], "\n".join(seen)
