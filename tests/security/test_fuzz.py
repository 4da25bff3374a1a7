"""Every reachable name as a target: only classes of our rooms are built, without side effects."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import forked
from triptych.config.build import check_names
from triptych.config.trust import check_name, import_class
from triptych.errors import UserError

# Classes of other packages that have a short name, and where they are defined.
CALLBACKS = """
device_stats_monitor.DeviceStatsMonitor early_stopping.EarlyStopping lr_monitor.LearningRateMonitor
model_summary.ModelSummary timer.Timer
""".split()
LIGHTNING = {"pytorch_lightning.Trainer": "pytorch_lightning.trainer.trainer.Trainer"}
for home in CALLBACKS:
    LIGHTNING[f"pytorch_lightning.callbacks.{home.split('.')[1]}"] = (
        f"pytorch_lightning.callbacks.{home}"
    )
ROOMS = tuple(
    f"triptych.{room}." for room in ("data", "networks", "diffusion", "models", "callbacks")
)


def fuzz(folder: Path, how: str) -> dict:
    """Run the fuzzer in a separate process, because an audit hook cannot be removed."""
    line = [sys.executable, "-m", "tests.security.fuzz", str(folder), how]
    result = forked.run(line, dict(os.environ), cwd=folder, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("how", "least"),
    [
        ("fast", 15_000),
        pytest.param("all", 500_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_fuzzed_targets_build_only_allowed_classes(tmp_path, how, least):
    found = fuzz(tmp_path, how)
    print({key: value if isinstance(value, int) else len(value) for key, value in found.items()})
    assert found["seen"] == [] and found["marks"] == []
    assert found["tried"] >= least and found["made"] > 1000
    for name in found["accepted"]:
        # The decision is repeated here from the object itself, not from a file.
        made = import_class(name)
        assert isinstance(made, type) and made.__qualname__ == name.rpartition(".")[2]
        home = f"{made.__module__}.{made.__qualname__}"
        if name in LIGHTNING:
            assert home == LIGHTNING[name]
            continue
        assert home.startswith((*ROOMS, "torch.optim."))
        packages = ("torch.optim", "triptych.diffusion.sampler")
        assert name in (home, *(f"{package}.{made.__name__}" for package in packages))


def test_audit_hook_records_attacks(tmp_path):
    """Each attack is seen under watch, so that a clean record means something."""
    script = tmp_path / "x.py"
    script.write_text(
        "import os, pickle, socket, subprocess, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from watch import Watch\n"
        f"w = Watch({str(tmp_path / 'run')!r}); w.on = True\n"
        "class Opener:\n    def __reduce__(self): return (os.getpid, ())\n"
        f"open({str(tmp_path / 'a')!r}, 'w').close()\n"
        f"os.close(os.open({str(tmp_path / 'b')!r}, os.O_CREAT | os.O_WRONLY))\n"
        "subprocess.run(['true']); os.system('true'); pickle.loads(pickle.dumps(Opener()))\n"
        f"os.rename({str(tmp_path / 'a')!r}, {str(tmp_path / 'c')!r}); "
        f"os.mkdir({str(tmp_path / 'd')!r})\n"
        "try: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass\n"
        "w.on = False\nprint(' '.join(s.split()[0] for s in w.seen))\n"
    )
    seen = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = (
        "subprocess.Popen os.system pickle.find_class os.rename os.mkdir socket.connect".split()
    )
    assert seen.count("open") == 2 and set(wanted) <= set(seen)


STRANGE: list = [None, 3, True, 1.5, [], {}, ["triptych.networks.mlp.MLP"], b"x", "x" * 10**6]
STRANGE += [
    {"_target_": "triptych.networks.mlp.MLP"},
    "",
    "triptych.networks.mlp.MLP ",
    " triptych.data.x.Y",
]
STRANGE += [
    "triptych.networks.mlp.MLP\n",
    "triptych.networks.mlp.MLP\0",
    "triptych/networks/mlp.MLP",
]
STRANGE += ["triptych.networks.mlp.\uff2d\uff2c\uff30", "triptych.n\u0435tworks.mlp.MLP"]
STRANGE += """
. .. triptych MLP triptych.networks.mlp triptych.networks.mlp. .triptych.networks.mlp.MLP
triptych..networks.mlp.MLP triptych.networks..mlp.MLP triptych.networks.mlp.MLP.__init__.__globals__
triptych.networks.mlp.MLP.__init__ triptych.networks.mlp.__builtins__ triptych.networks.__init__.MLP
triptych.networks.mlp.MLP.forward triptych.networks.mlp.nn.Linear triptych.networks.mlp.nn
triptych.networks.mlp.torch.load triptych.networks.mlp.Conditioning triptych.networks.MLP
triptych.config.trust.import_class triptych.config.build.build triptych.files.load_tensors
triptych.data...run.jobs.run_job triptych.data/../run/jobs.run_job triptych.run.jobs.serve
hydra.utils.instantiate hydra.utils.get_method builtins.eval os.system importlib.import_module
torch.optim.lr_scheduler.LambdaLR torch.optim.adam.torch.load torch.optim.sgd.SGD torch.optim
torch.optim._multi_tensor torch.optim.swa_utils.AveragedModel torch.optim.Nothing torch.load
pytorch_lightning.LightningModule pytorch_lightning.loggers.WandbLogger pytorch_lightning.os.system
pytorch_lightning.trainer.trainer.Trainer pytorch_lightning.Trainer.fit lightning.Trainer
triptych.data.base.DataError triptych.data.folder.Image.open triptych.data.build.build_data
TRIPTYCH.networks.mlp.MLP triptych.networks.MLP.MLP triptych.networks.mlp.mlp subprocess.run triptychx.y
""".split()


@pytest.mark.parametrize("name", STRANGE, ids=lambda name: ascii(name)[:60])
def test_import_class_refuses_malformed_names(name):
    with pytest.raises(UserError) as caught:
        import_class(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@settings(deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from("triptych networks mlp MLP data .. __class__ \u0430".split())).map(
        ".".join
    )
)
def test_check_name_refuses_arbitrary_text(name):
    try:
        assert check_name(name) == name and name == "triptych.networks.mlp.MLP"
    except UserError:
        pass


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
WORDS = st.sampled_from("_target_ _partial_ _args_ _convert_ _recursive_ width shape".split())


def grown(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4)


@settings(deadline=None)
@given(st.recursive(LEAVES, grown, max_leaves=12))
def test_check_names_finds_target_in_nested_nodes(node):
    """A name is found anywhere in a tree of groups and lists."""

    def holds(value):
        inner = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
        return (isinstance(value, dict) and "_target_" in value) or any(map(holds, inner))

    try:
        check_names({"x": [node]})
        assert not holds(node)
    except UserError:
        assert holds(node)
