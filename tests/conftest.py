"""Settings of every test: no network, one thread, its own root for data and logs."""

import os

os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_NUM_THREADS"] = os.environ["TRIPTYCH_THREADS"] = "1"

import atexit
import gc
import importlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import hypothesis
import pytest

from tests import forked, references

# An example may take long on a busy machine: its time says nothing of what it tests.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

if references.FOLDER not in os.environ:  # the workers of one session share it
    os.environ[references.FOLDER] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ[references.FOLDER], ignore_errors=True)

# `make test &` in a script has us ignore Ctrl-C, and `nohup make test` the end of the terminal
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


# Files of long tests: `make test` starts with these, so that no worker ends on one of them.
LONG = """
cli/test_bad_inputs cli/test_documents cli/test_doors cli/test_refusals models/test_assembly
run/test_cascade run/test_averaging run/test_final_checkpoint run/test_pipeline
run/test_resume run/test_wandb security/test_fuzz study/test_cells study/test_launchers
study/test_report_browser study/test_report_simulation study/test_sweep_plan test_api test_papers
""".split()


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        forked.serve()


def pytest_collection_finish() -> None:
    # what is imported and collected stays: no collection of garbage need look at it again
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(tuple(f"tests/{file}" for file in LONG)))


TINY = (
    "trainer.max_steps=6 trainer.val_check_interval=3 trainer.log_every_n_steps=1 "
    "trainer.accelerator=cpu "
    "threads=1 bound.repeats=2 bound.val_repeats=1 samples.n=4 sampler.steps=3 "
    "denoiser.network.width=8 denoiser.network.blocks=1"
).split()


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """The folder of this test's data and logs, never in the repository."""
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    monkeypatch.setenv("TRIPTYCH_ROOT", str(tmp_path))
    references.share(monkeypatch.setattr)
    return tmp_path


@pytest.fixture
def tiny() -> list[str]:
    """Overrides that make a real run of a few seconds."""
    return list(TINY)


@pytest.fixture
def prepared(root) -> Callable:
    """``prepared("objective=v", ...)``: the directory of a tiny run, as the command makes it."""
    from hydra import initialize_config_dir

    from triptych.config.check import CONFIGS
    from triptych.config.identity import register_resolvers
    from triptych.run.prepare import prepare
    from triptych.run.request import resolve

    register_resolvers()

    def make(*overrides: str, path: str | None = None, csv: bool = True, tiny: bool = True):
        # The tiny network's keys are those of resnet; another network has its own.
        other = any(
            o.startswith(("denoiser=", "experiment=ring", "model=vae", "model=hierarchical"))
            for o in overrides
        )
        small = [o for o in TINY if tiny and not (other and o.startswith("denoiser."))]
        if tiny and not any(
            o.startswith(("callbacks", "weights=chosen", "trained=")) for o in overrides
        ):
            small += ["callbacks.ema.others=[]"]  # each is one more pass over the validation items
        folder = root / "logs" / "runs" / (path or "tiny")
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = references.composed((*small, *(["logger=csv"] if csv else []), *overrides))
            cfg.hydra.overrides.task = list(overrides)
            return prepare(resolve(cfg, folder))

    return make


@pytest.fixture
def finished(prepared) -> Callable:
    """``finished("objective=v")``: as ``prepared``, and executed, once for a session of tests."""
    from triptych.run.execute import execute

    def make(*overrides: str, path: str = "tiny"):
        run, known = prepared(*overrides, path=path), references.RUNS
        if overrides not in known:
            execute(run)
            known[overrides] = Path(tempfile.mkdtemp(dir=os.environ[references.FOLDER]))
            shutil.copytree(run.path, known[overrides], dirs_exist_ok=True, symlinks=True)
        else:
            shutil.copytree(known[overrides], run.path, dirs_exist_ok=True, symlinks=True)
        return run

    return make


@pytest.fixture
def trusting(tmp_path, monkeypatch) -> Iterator[Callable[..., Path]]:
    """``trusting("lab", text)``: write a user module that configurations may name."""

    def trust_module(name: str, text: str = "", folder: Path = tmp_path) -> Path:
        file = folder / f"{name}.py"
        if text:
            file.write_text(text)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("TRIPTYCH_TRUST", name)
        return file

    before = {*sys.modules}
    yield trust_module
    own = os.environ.get("TRIPTYCH_TRUST", "").split(",")
    for name in [
        name for name in sys.modules if name.partition(".")[0] in own and name not in before
    ]:
        del sys.modules[name]


@pytest.fixture
def door(root) -> Callable:
    """``door("triptych.cli.train", "objective=v")``: run a command in a process, see forked.py."""

    def run(
        module: str, *arguments: str, timeout: float = 240, fresh: bool = False, **environment: str
    ) -> subprocess.CompletedProcess:
        line, env = [sys.executable, "-m", module, *arguments], os.environ | environment
        if fresh:  # what it imports, and where from, is what is tested
            return subprocess.run(
                line, capture_output=True, text=True, timeout=timeout, cwd=root, env=env
            )
        return forked.run(line, env, cwd=root, timeout=timeout)

    return run


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """Restore the state that a command within a test has changed."""
    with mock.patch.dict(os.environ):
        yield
    if module := sys.modules.get("triptych.study.sweep"):
        module._hooks.clear()  # a later command's exit code is its own sweep's


@pytest.fixture
def inside(root, monkeypatch, capsys) -> Callable:
    """``inside("triptych.cli.sample", "n=4")``: as ``door``, but in this process, with torch."""
    from hydra.core.global_hydra import GlobalHydra

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        monkeypatch.chdir(root)
        capsys.readouterr()
        code = 0
        try:
            importlib.import_module(module).main()
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, code, said.out, said.err)

    return run
