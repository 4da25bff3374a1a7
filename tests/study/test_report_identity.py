"""What a run is decides what it is compared with: data guard, and what changes the result is an axis."""

import time

import pytest
import yaml

from triptych.config.source import arguments
from triptych.run.read import read_run, read_runs
from triptych.study.compare import compare
from triptych.study.study import read_study
from triptych.study.verdict import verdict

from .fake_runs import edit, make_run, running


def resolved(**groups):
    """A resolved configuration; groups are merged into it."""
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
    """A finished run with a resolved configuration, and data of its own."""
    groups = {key: more.pop(key) for key in list(more) if key in resolved()}
    groups.setdefault("data", {})
    groups["objective"] = {"output": objective}
    groups["data"] = {"seed": seed, **groups["data"]}
    told = [f"seed={seed}", *typed] + ([f"objective={objective}"] if objective != "x0" else [])
    extra = {"overrides": told, "choices": more.pop("choices", {}), "measure": more.pop("measure", "bpd")}
    made = make_run(root, objective, seed, bound, data=more.pop("dataset", "digits"), **extra, **more)
    if fingerprint:
        edit(made / "summary.json", data={"fingerprint": fingerprint, "split": split, "n": {"test": 297}})
    config = resolved(**groups) | {"seed": seed}
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    return made


def test_without_averaging_is_a_cell_of_one_name(tmp_path):
    for seed in (1, 2):
        run(tmp_path / "with", seed, 2 + seed / 50)
        run(
            tmp_path / "without",
            seed,
            2.1 + seed / 40,
            callbacks={"ema": None},
            typed=("callbacks.ema=null",),
        )
    (comparison,) = compare(read_runs(tmp_path))
    assert [axis.key for axis in comparison.axes] == ["callbacks.ema"]
    assert {cell.label for cell in comparison.cells} == {"none", "ema=null"}
    assert not any("changes together" in note for note in comparison.notes)


def test_a_null_is_named_by_what_it_means(tmp_path):
    for steps in (10, None):
        for seed in (1, 2):
            typed = (f"bound.steps={steps or 'null'}",)
            run(tmp_path / str(steps), seed, 2 + seed / 50 + (steps or 0) / 100, typed=typed)
    (comparison,) = compare(read_runs(tmp_path))
    assert [cell.label for cell in comparison.cells] == ["continuous time", "steps=10"]


def test_a_model_without_an_objective_is_named_by_itself(tmp_path):
    for seed in (1, 2):
        choices = {"data": "digits", "objective": "none", "model": "vae"}
        run(tmp_path, seed, 2 + seed / 50, "none", choices=choices)
    (comparison,) = compare(read_runs(tmp_path))
    assert [cell.label for cell in comparison.cells] == ["vae"]


def test_two_roots_of_different_data_are_two_comparisons(tmp_path):
    for place, fingerprint, bound in (("/a", "f0", 2.0), ("/b", "f1", 3.0)):
        for seed in (1, 2, 3):
            data = {"root": place}
            run(
                tmp_path / place[1:],
                seed,
                bound + seed / 50,
                fingerprint=fingerprint,
                data=data,
                dataset="folder",
            )
    comparisons = compare(read_runs(tmp_path))
    assert [c.data for c in comparisons] == ["folder (root=/a)", "folder (root=/b)"]
    assert all(len(c.cells) == 1 and not c.claims for c in comparisons)
    assert "runs on folder (root=/b) are a comparison of their own" in " ".join(comparisons[0].notes)


def test_other_contents_at_the_same_place_are_two_comparisons(tmp_path):
    for fingerprint, bound in (("abcdef0123456789", 2.0), ("1234567890abcdef", 3.0)):
        run(tmp_path / fingerprint, 1, bound, fingerprint=fingerprint, data={"root": "/a"}, dataset="folder")
    found = [c.data for c in compare(read_runs(tmp_path))]
    assert found == ["folder (fingerprint 12345678)", "folder (fingerprint abcdef01)"]


def test_the_same_data_copied_elsewhere_are_one(tmp_path):
    for place, objective, bound in (("/a", "x0", 2.0), ("/b", "v", 3.0)):
        for seed in (1, 2, 3):
            paths = {"root_dir": place, "data_dir": f"{place}/data"}
            keys = {"data": {"root": f"{place}/data"}, "paths": paths}
            run(tmp_path / place[1:], seed, bound + seed / 50, objective, dataset="folder", **keys)
    (comparison,) = compare(read_runs(tmp_path))
    assert comparison.data == "folder" and [cell.label for cell in comparison.cells] == ["x0", "v"]


def test_two_sweeps_differ_by_what_differs(tmp_path):
    roots = [tmp_path / "sweep,optimizer.lr=0.002", tmp_path / "sweep,optimizer.lr=0.004"]
    for root, rate in zip(roots, (0.002, 0.004), strict=True):
        for seed in (1, 2):
            run(root, seed, 2 + 10 * rate + seed / 50, optimizer={"lr": rate})
    (comparison,) = read_study(roots).comparisons
    assert comparison.subject == "optimizer.lr"
    assert {cell.label: len(cell.runs) for cell in comparison.cells} == {"lr=0.002": 2, "lr=0.004": 2}


@pytest.mark.parametrize("known", [True, False])
def test_a_smaller_training_set_is_a_setting_and_another_test_set_is_not(tmp_path, known):
    for n in (100, 1000):
        for seed in (1, 2):
            data = {"train_size": n, "test_size": 50}
            told = {"fingerprint": "f" if known else "", "split": str(n), "data": data, "dataset": "ring"}
            run(tmp_path / str(n), seed, 2 + seed / 50, **told)
    (comparison,) = compare(read_runs(tmp_path))
    assert [axis.key for axis in comparison.axes] == ["data.train_size"]
    assert not any("splits" in note for note in comparison.notes)
    told = {"fingerprint": "g" if known else "", "data": data | {"test_size": 60}, "dataset": "ring"}
    run(tmp_path / "other", 1, 2.0, **told)
    assert len(compare(read_runs(tmp_path))) == 2


def test_runs_older_than_fingerprints_go_by_their_configuration(tmp_path):
    ring = {"_target_": "triptych.data.mixture.Ring"}
    for seed in (1, 2):
        run(tmp_path / "a", seed, 2.0 + seed / 50, fingerprint="", data=ring | {"std": 0.1}, dataset="ring")
        run(tmp_path / "b", seed, 3.0 + seed / 50, fingerprint="", data=ring | {"std": 0.2}, dataset="ring")
    run(
        tmp_path / "c", 3, 2.1, fingerprint="f", data=ring | {"std": 0.1}, dataset="ring"
    )  # begun before, ended since
    found = {c.data: sum(len(cell.runs) for cell in c.cells) for c in compare(read_runs(tmp_path))}
    assert found == {"ring (std=0.1)": 3, "ring (std=0.2)": 2}


def test_where_a_run_lies_and_on_what_it_runs_is_no_axis(tmp_path):
    others = [
        {"paths": {"root_dir": "/b"}}, {"logger": {}}, {"threads": 4}, {"name": "other"},
        {"trainer": {"devices": 2, "accelerator": "gpu", "log_every_n_steps": 1}},
        {"typed": ("retry=true", "force=true")}, {"choices": {"trainer": "gpu", "logger": "csv"}},
        {"choices": {"callbacks": "default"}}, {"choices": {"callbacks": "mine"}},  # of the same keys
        {"data": {"num_workers": 3, "pin_memory": True, "eval_batch_size": 7}},
    ]  # fmt: skip
    for seed, other in enumerate(others):
        run(tmp_path, seed, 2.0 + seed / 50, **other)
    (comparison,) = compare(read_runs(tmp_path))
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
def test_whatever_else_differs_is_an_axis(tmp_path, key, values):
    for value in values:
        for seed in (1, 2):
            group, _, name = key.partition(".")
            made = run(tmp_path / str(value), seed, 2.0 + seed / 50)
            config = yaml.safe_load((made / "config.yaml").read_text())
            *parents, last = key.split(".")
            node = config
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
            (made / "config.yaml").write_text(yaml.safe_dump(config))
    (comparison,) = compare(read_runs(tmp_path))
    assert [axis.key for axis in comparison.axes] == [key] and len(comparison.cells) == 2
    assert not any("changes together" in note or key in note for note in comparison.notes)


def test_a_key_that_an_earlier_version_did_not_have_is_at_its_default(tmp_path):
    ema = {"_target_": "triptych.callbacks.ema.EMA", "decay": 0.998}
    old = {"measures": {"n": 0}, "callbacks": {"ema": ema}}
    new = {"measures": {"n": 0, "statistics": None}, "init_partial": False}
    new["callbacks"] = {"ema": ema | {"snapshots": 0}}
    for seed, keys in ((1, old), (2, new), (3, new)):
        made = run(tmp_path, seed, 2.0 + seed / 50)
        config = yaml.safe_load((made / "config.yaml").read_text())
        (made / "config.yaml").write_text(yaml.safe_dump(config | keys))
    (comparison,) = compare(read_runs(tmp_path))
    assert comparison.axes == () and not [note for note in comparison.notes if "init_partial" in note]


@pytest.mark.parametrize("target", ["torch./{at}/evil.X", "torch.evil.X", "/{at}/evil.X", "a" * 9999])
def test_no_file_that_a_strangers_run_names_is_read(tmp_path, monkeypatch, target):
    """An annotation is evaluated where a declaration is looked for."""
    lines = f'class X:\n    def __init__(self, b: open({str(tmp_path / "mark")!r}, "w") = 3): pass\n'
    (tmp_path / "evil.py").write_text(lines)
    monkeypatch.chdir(tmp_path)
    made = target.format(at=str(tmp_path).strip("/"))
    for seed, extra in ((1, {"b": 1}), (2, {"_target_": made})):
        folder = run(tmp_path / "runs", seed, 2.0 + seed / 50)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"extra": extra}))
    (comparison,) = compare(read_runs(tmp_path / "runs"))
    assert len(comparison.cells) == 2 and not (tmp_path / "mark").exists()
    assert arguments(made) is None


def test_a_run_without_a_bound_is_left_out_by_that_name(tmp_path):
    for seed in (1, 2):
        run(tmp_path, seed, 2.0 + seed / 50)
    edit(run(tmp_path, 3, 2.1) / "summary.json", test={"accuracy": {"mean": 0.9, "n": 297}})
    (comparison,) = compare(read_runs(tmp_path))
    assert "Left out, with no bound: seed=3." in comparison.notes


def test_processes_that_a_sweep_varies_are_told_apart(tmp_path):
    for devices in (1, 2):
        keys = {"trainer": {"devices": devices}, "typed": (f"trainer.devices={devices}",)}
        for seed in (1, 2):
            run(tmp_path, seed, 2.0 + seed / 50 + devices / 100, **keys)
    (comparison,) = compare(read_runs(tmp_path))
    assert [axis.key for axis in comparison.axes] == ["trainer.devices"] and len(comparison.cells) == 2


def test_an_unfinished_run_waits_where_its_data_are(tmp_path):
    for fingerprint in ("f0", "f1"):
        run(tmp_path / fingerprint, 1, 2.0, fingerprint=fingerprint)
    made = running(tmp_path / "later", "v", 1)
    edit(made / "provenance.json", data={"fingerprint": "f1", "split": "s"})
    found = {c.cells[0].runs[1].fingerprint: len(c.pending) for c in compare(read_runs(tmp_path))}
    assert found == {"f0": 0, "f1": 1}


def test_data_that_changed_on_the_way_are_noted(tmp_path):
    record = {"fingerprint": "f0", "split": "s0", "n": {"test": 297}, "changed": True}
    edit(run(tmp_path, 1, 2.0) / "summary.json", data=record)
    (comparison,) = compare(read_runs(tmp_path))
    assert any("went on after the data had changed" in note for note in comparison.notes)


@pytest.mark.parametrize("content", ["a: !!python/object/apply:os.system [false]", "a: " + "[" * 5000, "- 1"])
def test_a_configuration_that_is_none_costs_nothing_and_hides_no_figure(tmp_path, content):
    made = run(tmp_path, 1, 2.0)
    (made / "config.yaml").write_text(content)
    read = read_run(made)
    assert read.status == "finished" and read.config == {} and read.bound == 2.0
    assert verdict(compare([read])[0]).headline


def test_of_hundreds_of_settings_that_differ_the_first_tell_runs_apart(tmp_path):
    """As of a stranger's configuration: each is held against each, which took minutes."""
    for place in range(4):
        choices = {f"k{n}": str(place * n % 7) for n in range(1, 401)}
        make_run(tmp_path, "v", place, 2.0 + place / 100, choices=choices)
    began = time.process_time()
    (comparison,) = read_study([tmp_path]).comparisons
    assert any("settings differ; only the first 300 tell these runs apart" in n for n in comparison.notes)
    assert time.process_time() - began < 20
