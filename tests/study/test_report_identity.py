"""Which runs are compared: those of equal data; settings that change results are axes."""

import math
import time

import pytest
import yaml

from triptych.config.signatures import arguments
from triptych.run.read import read_run, read_runs
from triptych.study.compare import compare
from triptych.study.study import read_study
from triptych.study.tables import table_rows

from .fake_runs import edit, make_run, metrics, running
from .test_report_compare import one


def resolved(**groups):
    """Return a resolved configuration with these groups merged into it."""
    config = {
        "data": {"_target_": "triptych.data.digits.Digits", "val_size": 150, "batch_size": 64, "seed": 1},
        "objective": {"output": "x0", "loss": {"power": 0}},
        "callbacks": {"ema": {"_target_": "triptych.callbacks.ema.EMA", "decay": 0.998}},
        "trainer": {"max_steps": 800, "devices": 1, "accelerator": "cpu", "log_every_n_steps": 20},
        "sampler": {"_target_": "triptych.diffusion.sampler.ancestral.Ancestral", "steps": 100},
        "guidance": {}, "optimizer": {"lr": 0.002},
        "logger": {"wandb": {"project": "triptych", "group": None}},
        "paths": {"root_dir": "/a", "data_dir": "/a/data"},
        "name": None, "threads": 1, "weights": "ema", "trained": None,
    }  # fmt: skip
    for group, keys in groups.items():
        config[group] = {**config[group], **keys} if isinstance(keys, dict) and keys else keys
    return config


def run(root, seed, bound, objective="x0", fingerprint="f0", split="s0", typed=(), **more):
    """Make a finished run with a resolved configuration and its own data."""
    groups = {key: more.pop(key) for key in list(more) if key in resolved()}
    groups.setdefault("data", {})
    groups["objective"] = {"output": objective}
    groups["data"] = {"seed": seed, **groups["data"]}
    told = [f"seed={seed}", *typed] + ([f"objective={objective}"] if objective != "x0" else [])
    extra = {
        "overrides": told,
        "choices": more.pop("choices", {}),
        "measure": more.pop("measure", "bpd"),
    }
    made = make_run(
        root, objective, seed, bound, data=more.pop("dataset", "digits"), **extra, **more
    )
    if fingerprint:
        edit(
            made / "summary.json",
            data={"fingerprint": fingerprint, "split": split, "n": {"test": 297}},
        )
    config = resolved(**groups) | {"seed": seed}
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    return made


def set_keys(made, **keys):
    """Set keys of a run's configuration, by dotted names."""
    config = yaml.safe_load((made / "config.yaml").read_text())
    for key, value in keys.items():
        node, (*parents, last) = config, key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    (made / "config.yaml").write_text(yaml.safe_dump(config))


def pair(root, bound, *args, **more):
    """Make two seeds of one setting."""
    for seed in (1, 2):
        run(root, seed, bound + seed / 50, *args, **more)


NO_EMA = {"callbacks": {"ema": None}, "typed": ["callbacks.ema=null"]}
DEVICES = [{"trainer": {"devices": n}, "typed": [f"trainer.devices={n}"]} for n in (1, 2)]
BARE = {"objective": "none", "choices": {"data": "digits", "objective": "none", "model": "vae"}}


@pytest.mark.parametrize(
    "settings, key, labels",
    [
        ([{}, NO_EMA], "callbacks.ema", "ema=none, ema=null"),
        (
            [{"typed": [f"bound.steps={n}"]} for n in ("null", 10)],
            "bound.steps",
            "continuous time, steps=10",
        ),
        ([BARE], None, "vae"),  # named by itself, as it has no objective
        (DEVICES, "trainer.devices", "devices=1, devices=2"),  # a key of the machine that was typed
    ],
)
def test_cell_labels_name_differing_keys(tmp_path, settings, key, labels):
    for place, keys in enumerate(settings):
        pair(tmp_path / str(place), 2 + place / 10, **keys)
    comparison = one(tmp_path)
    assert [axis.key for axis in comparison.axes] == ([key] if key else [])
    assert ", ".join(cell.label for cell in comparison.cells) == labels
    assert not any("changes together" in note for note in comparison.notes)


@pytest.mark.parametrize(
    ("places", "names"),
    [
        ({"f0": "/a", "f1": "/b"}, ["folder (root=/a)", "folder (root=/b)"]),
        (
            {"abcdef0123456789": "/a", "1234567890abcdef": "/a"},
            ["folder (fingerprint 12345678)", "folder (fingerprint abcdef01)"],
        ),
        # A name is cut, and is nevertheless that of one comparison.
        (
            {"abcdef0123456789": f"/{'a' * 200}/1", "1234567890abcdef": f"/{'a' * 200}/2"},
            ["folder (fingerprint 12345678)", "folder (fingerprint abcdef01)"],
        ),
    ],
)
def test_data_with_other_fingerprint_are_compared_separately(tmp_path, places, names):
    for fingerprint, root in places.items():
        told = {"fingerprint": fingerprint, "data": {"root": root}, "dataset": "folder"}
        pair(tmp_path / fingerprint, 2.0, **told)
    comparisons = compare(read_runs(tmp_path))
    assert [c.data for c in comparisons] == names
    assert all(len(c.cells) == 1 and not c.claims for c in comparisons)


def test_same_data_in_other_folder_are_one_comparison(tmp_path):
    for place, objective, bound in (("/a", "x0", 2.0), ("/b", "v", 3.0)):
        paths = {"root_dir": place, "data_dir": f"{place}/data"}
        keys = {"data": {"root": f"{place}/data"}, "paths": paths}
        pair(tmp_path / place[1:], bound, objective, dataset="folder", **keys)
    comparison = one(tmp_path)
    assert comparison.data == "folder" and [cell.label for cell in comparison.cells] == ["x0", "v"]


def test_differing_key_of_two_sweeps_is_the_axis(tmp_path):
    roots = [tmp_path / "sweep,optimizer.lr=0.002", tmp_path / "sweep,optimizer.lr=0.004"]
    for root, rate in zip(roots, (0.002, 0.004), strict=True):
        pair(root, 2 + 10 * rate, optimizer={"lr": rate})
    (comparison,) = read_study(roots).comparisons
    assert comparison.subject == "optimizer.lr"
    assert {cell.label: len(cell.runs) for cell in comparison.cells} == {
        "lr=0.002": 2,
        "lr=0.004": 2,
    }


@pytest.mark.parametrize("known", [True, False])
def test_train_size_is_an_axis_and_test_set_separates_comparisons(tmp_path, known):
    for n in (100, 1000):
        data = {"train_size": n, "test_size": 50}
        told = {
            "fingerprint": "f" if known else "",
            "split": str(n),
            "data": data,
            "dataset": "ring",
        }
        pair(tmp_path / str(n), 2.0, **told)
    comparison = one(tmp_path)
    assert [axis.key for axis in comparison.axes] == ["data.train_size"]
    assert not any("splits" in note for note in comparison.notes)
    told = {
        "fingerprint": "g" if known else "",
        "data": data | {"test_size": 60},
        "dataset": "ring",
    }
    run(tmp_path / "other", 1, 2.0, **told)
    assert len(compare(read_runs(tmp_path))) == 2


def test_runs_without_fingerprint_are_grouped_by_data_config(tmp_path):
    ring = {"_target_": "triptych.data.mixture.Ring"}
    small, large = ({"data": ring | {"std": std}, "dataset": "ring"} for std in (0.1, 0.2))
    pair(tmp_path / "a", 2.0, fingerprint="", **small)
    pair(tmp_path / "b", 3.0, fingerprint="", **large)
    found = {c.data: sum(len(cell.runs) for cell in c.cells) for c in compare(read_runs(tmp_path))}
    assert found == {"ring (std=0.1)": 2, "ring (std=0.2)": 2}


def test_paths_and_machine_keys_are_not_axes(tmp_path):
    others = [
        {"paths": {"root_dir": "/b"}}, {"logger": {}}, {"threads": 4}, {"name": "other"},
        {"trainer": {"devices": 2, "accelerator": "gpu", "log_every_n_steps": 1}},
        {"typed": ("retry=true", "force=true")}, {"choices": {"trainer": "gpu", "logger": "csv"}},
        # of the same keys
        {"choices": {"callbacks": "default"}}, {"choices": {"callbacks": "mine"}},
        {"data": {"num_workers": 3, "pin_memory": True, "eval_batch_size": 7}},
    ]  # fmt: skip
    for seed, other in enumerate(others):
        run(tmp_path, seed, 2.0 + seed / 50, **other)
    comparison = one(tmp_path)
    assert comparison.axes == () and [len(cell.runs) for cell in comparison.cells] == [len(others)]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("callbacks.ema.decay", (0.99, 0.998)),
        ("trainer.gradient_clip_val", (1.0, None)),
        ("data.batch_size", (64, 32)),
        ("model.key_of_tomorrow", (1, 2)),
    ],
)
def test_any_other_differing_key_is_an_axis(tmp_path, key, values):
    for value in values:
        for seed in (1, 2):
            set_keys(run(tmp_path / str(value), seed, 2.0 + seed / 50), **{key: value})
    comparison = one(tmp_path)
    assert [axis.key for axis in comparison.axes] == [key] and len(comparison.cells) == 2
    assert not any("changes together" in note or key in note for note in comparison.notes)


def test_group_missing_in_old_run_counts_as_none(tmp_path):
    run(tmp_path, 1, 2.0)
    run(tmp_path, 2, 2.02, choices={"threshold": "none"})
    comparison = one(tmp_path)
    assert comparison.axes == () and [len(cell.runs) for cell in comparison.cells] == [2]


def test_key_missing_in_old_run_counts_as_default(tmp_path):
    ema = {"_target_": "triptych.callbacks.ema.EMA", "decay": 0.998}
    old = {"measures": {"n": 0}, "callbacks": {"ema": ema}}
    new = {"measures": {"n": 0, "statistics": None}, "init_partial": False}
    new["callbacks"] = {"ema": ema | {"snapshots": 0}}
    for seed, keys in ((1, old), (2, new), (3, new)):
        set_keys(run(tmp_path, seed, 2.0 + seed / 50), **keys)
    comparison = one(tmp_path)
    assert comparison.axes == () and not [
        note for note in comparison.notes if "init_partial" in note
    ]


@pytest.mark.parametrize(
    "target", ["torch./{at}/evil.X", "torch.evil.X", "/{at}/evil.X", "a" * 8000]
)
def test_report_does_not_evaluate_sources_named_by_run(tmp_path, monkeypatch, target):
    """Looking up a declaration evaluates its annotation."""
    lines = (
        f'class X:\n    def __init__(self, b: open({str(tmp_path / "mark")!r}, "w") = 3): pass\n'
    )
    (tmp_path / "evil.py").write_text(lines)
    monkeypatch.chdir(tmp_path)
    made = target.format(at=str(tmp_path).strip("/"))
    for seed, extra in ((1, {"b": 1}), (2, {"_target_": made})):
        set_keys(run(tmp_path / "runs", seed, 2.0 + seed / 50), extra=extra)
    comparison = one(tmp_path / "runs")
    assert len(comparison.cells) == 2 and not (tmp_path / "mark").exists()
    assert arguments(made) is None


def test_a_run_without_a_finite_bound_is_left_out_and_the_table_says_so(tmp_path):
    pair(tmp_path, 2.0)
    for seed, test in ((3, {"accuracy": {"mean": 0.9, "n": 297}}), (4, metrics(math.nan))):
        edit(run(tmp_path, seed, 2.1) / "summary.json", test=test)
    comparison = one(tmp_path)
    (cell,) = comparison.cells
    assert (set(cell.runs), cell.bound.n) == ({1, 2}, 2)
    assert table_rows(comparison)[0].seeds == "2 (1 without bound, 1 not finite)"


def test_unfinished_run_is_pending_in_comparison_of_its_data(tmp_path):
    for fingerprint in ("f0", "f1"):
        run(tmp_path / fingerprint, 1, 2.0, fingerprint=fingerprint)
    made = running(tmp_path / "later", "v", 1)
    edit(made / "provenance.json", data={"fingerprint": "f1", "split": "s"})
    found = {c.cells[0].runs[1].fingerprint: len(c.pending) for c in compare(read_runs(tmp_path))}
    assert found == {"f0": 0, "f1": 1}


def test_failed_run_of_other_data_settings_is_in_no_comparison(tmp_path):
    """It failed before its data had a fingerprint."""
    pair(tmp_path / "done", 2.0, data={"root": "/a"}, dataset="folder")
    for root, pending in (("/b", 0), ("/a", 1)):
        made = running(tmp_path / root[1:], "v", 1, data="folder")
        (made / "config.yaml").write_text(yaml.safe_dump(resolved(data={"root": root})))
        assert len(one(tmp_path).pending) == pending


def test_report_notes_data_changed_during_run(tmp_path):
    record = {"fingerprint": "f0", "split": "s0", "n": {"test": 297}, "changed": True}
    edit(run(tmp_path, 1, 2.0) / "summary.json", data=record)
    assert any("resumed after the data had changed" in note for note in one(tmp_path).notes)


@pytest.mark.parametrize(
    "content", ["a: !!python/object/apply:os.system [false]", "a: " + "[" * 5000, "- 1"]
)
def test_malformed_config_makes_run_unreadable(tmp_path, content):
    """A run with unknown settings is compared with no other."""
    made = run(tmp_path, 1, 2.0)
    (made / "config.yaml").write_text(content)
    read = read_run(made)
    assert (
        read.status == "unreadable"
        and read.error.startswith("config.yaml: ")
        and "\n" not in read.error
    )


def test_runs_that_differ_in_hundreds_of_settings_are_compared_in_seconds(tmp_path):
    for place in range(4):
        choices = {f"k{n}": str(place * n % 7) for n in range(1, 401)}
        make_run(tmp_path, "v", place, 2.0 + place / 100, choices=choices)
    began = time.process_time()
    (comparison,) = read_study([tmp_path]).comparisons
    assert len(comparison.cells) == 4
    assert time.process_time() - began < 20
