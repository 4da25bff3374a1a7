"""Files that claim more than they hold, or hold what they must not: one line, little memory."""

import csv
import io
import json
import os
import pickle
import resource
import time
import zipfile
from collections import OrderedDict
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import EpsImagePlugin, Image
from torch._utils import _rebuild_tensor_v2

from triptych.config.file import read_config
from triptych.data.folder import ImageFolder
from triptych.errors import StorageError, UserError
from triptych.files import check_outside_of_records, load_object
from triptych.run.directory import SCHEMA, RunDirectory, write_atomic
from triptych.run.items import read_arrays
from triptych.run.read import read_run
from triptych.run.reopen import reopen
from triptych.run.untrusted import read_checkpoint
from triptych.study.results import results_csv

from .strangers import Opener, configuration, marks, save_checkpoint

MIB = 2**20


def test_output_beneath_another_programs_sweep_json_is_allowed(tmp_path):
    """A sweep's directory is known by two records, as other programs write a sweep.json, too."""
    (tmp_path / "sweep.json").write_text("{}")
    check_outside_of_records("out", "x", tmp_path / "x")
    (tmp_path / "multirun.yaml").write_text("")
    with pytest.raises(UserError, match="lies in a run's or sweep's directory"):
        check_outside_of_records("out", "x", tmp_path / "x")


def test_file_in_place_of_a_runs_folder_is_a_storage_error(tmp_path):
    (tmp_path / "samples").write_text("mine")
    with pytest.raises(StorageError, match="samples/final.png: cannot be written"):
        write_atomic(tmp_path / "samples" / "final.png", b"")
    assert (tmp_path / "samples").read_text() == "mine"


@contextmanager
def refused(*words, memory=64 * MIB):
    """Expect a UserError in one line with these words, within seconds and ``memory`` bytes."""
    with suppress(OSError):  # Linux: the peak so far counts no more
        Path("/proc/self/clear_refs").write_text("5")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert time.process_time() - began < 5  # a hang or a bomb takes minutes
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < memory
    assert "\n" not in message and len(message) < 1000
    for word in words:
        assert word in message, message


# config.yaml


def bomb(levels=9, each=9):
    """Billion laughs: nine lists of nine aliases of the previous list."""
    lines = ['a: &a ["lol"]']
    for i in range(1, levels):
        name, last = "abcdefghijk"[i], "abcdefghijk"[i - 1]
        lines.append(f"{name}: &{name} [{','.join([f'*{last}'] * each)}]")
    return "\n".join(lines)


YAML = {
    "aliases": (bomb(), "an alias"),
    "one alias": ("a: &x {b: 1}\nc: *x\n", "an alias"),
    "cycle": ("a: &x [*x]\n", "an alias"),
    "merge": ("a: &x {b: 1}\nc:\n  <<: *x\n", "an alias"),
    "deep lists": ("a: " + "[" * 200_000, "nest"),
    "digits": ("a: " + "9" * 8000, "cannot be read"),
    "python": ("a: !!python/object/apply:os.system ['true']", "tag"),
    "path": ("a: !!python/object/apply:pathlib.Path ['/x']", "tag"),
    "binary": ("a: !!binary aGVsbG8=", "a is bytes"),
    "set": ("a: !!set {x}", "a is set"),
    "reference": ("a: ${oc.env:HOME}", "interpolation"),
    "escaped": ('a: "\\u0024{oc.env:HOME}"', "interpolation"),
    "inner": ("a:\n  b:\n  - ['x${now:}']", "interpolation"),
    "list": ("- 1", "not a group"),
    "empty": ("", "not a group"),
    "numbers for keys": ("a: {1: 2}", "a.1: a key must be text"),
    "two documents": ("a: 1\n---\nb: 2", "cannot be read"),
    "bytes": ("a: \udcff", "cannot be read"),
    "broken": ("a: [1, {", "cannot be read"),
}


@pytest.mark.parametrize("name", YAML)
def test_malicious_yaml_config_is_refused(tmp_path, name):
    text, words = YAML[name]
    file = tmp_path / "config.yaml"
    file.write_text(text, errors="surrogateescape")
    with refused(str(file), words):
        read_config(file)
    with pytest.raises(UserError):
        RunDirectory(tmp_path).config()


def test_valid_config_round_trips(tmp_path):
    odd = [1e-3, 8e-3, 1e22, float("inf"), -3, "1e3", "yes", "null", "~", "2024-01-01"]
    more = {
        "a": None,
        "b": True,
        "c": "x: y",
        "d": "",
        "e": "-",
        "f": "1:30",
        "g": "ü\n",
        "h": "0o7",
    }
    config = configuration() | {"odd": odd, "more": more}
    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert read_config(file) == config == OmegaConf.to_container(OmegaConf.load(file))


# checkpoints


class Storage:
    """A reference to a record of the archive, in a pickle."""

    def __init__(self, numel):
        self.numel = numel


class Writer(pickle._Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return ("storage", torch.FloatStorage, "0", "cpu", value.numel)
        return None


class Made:
    """An object whose pickle is a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def tensor(size, stride, numel=4, offset=0):
    return Made(_rebuild_tensor_v2, Storage(numel), offset, size, stride, False, OrderedDict())


def archive(weights, record=b"\0" * 16, method=zipfile.ZIP_STORED):
    """Write a checkpoint's file with one entry of a state_dict."""
    text = io.BytesIO()
    about = {"triptych": {"schema": SCHEMA, "config": {}}, "global_step": 0, "callbacks": {}}
    Writer(text, 2).dump(about | {"state_dict": {"w": weights}})
    records = {
        "data.pkl": text.getvalue(),
        "byteorder": b"little",
        "version": b"3\n",
        "data/0": record,
    }
    return packed(records, method)


def packed(records, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in records.items():
            file.writestr(f"archive/{name}", data)
    return out.getvalue()


FILES = {
    "storage": lambda: archive(tensor((4,), (1,), numel=2**30)),
    "negative": lambda: archive(tensor((-4,), (1,))),
    "a call": lambda: archive(Made(bytearray, 2**40)),
    "deep": lambda: packed({"data.pkl": b"\x80\x02" + b"](" * 20_000 + b"."}),
    "no pickle": lambda: packed({"version": b"3\n"}),
    "legacy": lambda: pickle.dumps({"triptych": {}, "state_dict": {}}),
    "empty": lambda: b"",
    "zip": lambda: b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("name", FILES)
def test_invalid_checkpoint_file_is_refused(tmp_path, name):
    path = tmp_path / "x.ckpt"
    path.write_bytes(FILES[name]())
    with refused(f"ckpt={path}: damaged, truncated, or with more", "pass a checkpoint of a run"):
        read_checkpoint(path)


def test_valid_handmade_checkpoint_archive_is_read(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(archive(tensor((2, 2), (2, 1)), np.arange(4, dtype=np.float32).tobytes()))
    assert read_checkpoint(path)["state_dict"]["w"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_in_a_checkpoint_is_not_run(root, protocol):
    path = root / "x.ckpt"
    content = {"triptych": {"config": {}}, "state_dict": {}, "x": Opener(root / "mark")}
    torch.save(content, path, pickle_protocol=protocol)
    with refused("with more than tensors and plain data"):
        read_checkpoint(path)
    assert not marks(root)


def test_a_cycle_in_a_checkpoints_configuration(tmp_path):
    ring = {}
    ring["x"] = [ring]
    path = save_checkpoint(tmp_path / "x.ckpt", ring)
    with refused(f"ckpt={path}: config", "nested too deeply"):
        read_checkpoint(path)


def test_read_checkpoint_supports_every_tensor_dtype(tmp_path):
    kinds = (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
    ).split()
    state = {kind: torch.arange(6).reshape(2, 3).to(getattr(torch, kind)) for kind in kinds}
    tied = torch.randn(5, 7)
    state |= {
        "tied": tied,
        "again": tied,
        "view": tied.T,
        "part": tied[1:3],
        "none": torch.empty(0, 3),
    }
    state |= {"scalar": torch.tensor(3.0), "parameter": torch.nn.Parameter(torch.randn(3))}
    path = save_checkpoint(tmp_path / "x.ckpt", {"a": 1}, OrderedDict(state))
    found = read_checkpoint(path)["state_dict"]
    assert all(
        found[name].equal(value) and found[name].dtype == value.dtype
        for name, value in state.items()
    )


@pytest.mark.parametrize("threads", [0, -1, 10**9, "x", None, 2.5])
def test_invalid_threads_in_checkpoint_are_refused(tmp_path, threads):
    with refused("threads="):
        reopen(str(save_checkpoint(tmp_path / "x.ckpt", configuration() | {"threads": threads})))


# data, figures


def folder_of(tmp_path, files=4, size=(8, 8)):
    for i in range(files):
        Image.new("RGB", size, (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_postscript_named_png_is_not_opened(tmp_path, monkeypatch):
    """Pillow goes by content, and reads PostScript with Ghostscript."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: ran.append(a))
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (folder_of(tmp_path) / "2.png").write_text(eps)
    with refused("2.png", "cannot read the image"):
        ImageFolder(tmp_path, size=8, val_fraction=0, test_fraction=0).setup()
    assert not ran


def test_deep_json_or_pipe_is_unreadable(tmp_path):
    file = tmp_path / "summary.json"
    file.write_text("[" * 100_000)
    assert load_object(file) == {} and read_run(tmp_path).status == "unreadable"
    file.unlink()
    os.mkfifo(file)  # nobody writes to it: reading would wait for ever
    assert load_object(file) == {} and RunDirectory(tmp_path).status == "unreadable"


def test_samples_path_outside_run_is_ignored(tmp_path):
    (tmp_path / "run").mkdir()
    for name, shown in (
        ("samples/final.png", True),
        ("../x.png", False),
        (str(tmp_path / "x.png"), False),
    ):
        record = {"schema": 1, "status": "finished", "samples": name}
        (tmp_path / "run" / "summary.json").write_text(json.dumps(record))
        assert (read_run(tmp_path / "run").samples is not None) == shown


def npz(path, method=zipfile.ZIP_STORED, **arrays):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in arrays.items():
            file.writestr(f"{name}.npy", data)


def npy(array, shape=None, **keys):
    out = io.BytesIO()
    np.save(out, array, **keys)
    data = out.getvalue()
    return data if shape is None else data.replace(str(array.shape).encode(), shape.encode(), 1)


def test_read_arrays_refuses_malformed_npz(tmp_path):
    file = tmp_path / "items.npz"
    assert read_arrays(file, ["index"]) is None
    index, total = np.arange(5), np.linspace(0, 1, 5)
    for save in (np.savez, np.savez_compressed):
        save(file, index=index, total=total, other=np.array(["x"]))
        found = read_arrays(file, ["index", "total"])
        assert np.array_equal(found["index"], index) and np.array_equal(found["total"], total)
        assert (
            found["total"].dtype == np.float64 and read_arrays(file, ["index", "missing"]) is None
        )
    objects = npy(np.array([Opener(tmp_path / "mark")], dtype=object), allow_pickle=True)
    shapes = [npy(total, shape) for shape in ("(1099511627776,)", "(-5,)", "(4,)")]
    others = [npy(total.reshape(5, 1)), npy(np.array(["x"] * 5)), npy(total[:3])]
    for bad in (objects, *shapes, *others, b"", b"x" * 100):
        npz(file, index=npy(index), total=bad)
        assert read_arrays(file, ["index", "total"]) is None, bad[:80]
    assert not marks(tmp_path)


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "＝1"]
)
def test_results_csv_escapes_spreadsheet_formulas(tmp_path, text):
    record = {"schema": 1, "status": "failed", "error": f"x{text}", "overrides": [f"{text}={text}"]}
    record |= {"device": text, "choices": {"data": text}, "seconds": {text: 1.5}}
    (tmp_path / "summary.json").write_text(json.dumps(record))
    (tmp_path / "provenance.json").write_text(
        json.dumps({"git": {"commit": text}, "started": text})
    )
    rows = list(csv.reader(io.StringIO(results_csv([read_run(tmp_path)], tmp_path))))
    starts = {cell[:1] for row in rows for cell in row if cell not in ("-2+3",)}
    assert not starts & set("=+-@\t\r＝"), rows


def test_checkpoint_of_other_schema_version_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {}, "triptych": {"schema": 1, "config": {"seed": 1}}}, path)
    with refused(f"ckpt={path}", "another version", "pass a checkpoint with schema"):
        read_checkpoint(path)
