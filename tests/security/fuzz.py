"""Try every name that a configuration can have, and each accepted class with hostile arguments.

``python -m tests.security.fuzz FOLDER {fast,all}`` writes found.json: how many names were tried,
which were accepted, how many objects were requested and built, and other events meanwhile (see
watch.py).
"""

import difflib
import importlib
import inspect
import json
import os
import pickle
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.security.watch import Watch

SAMPLE = 40  # of the names deep down, "fast" takes one in so many; of arguments, one in two


def modules(name: str) -> Iterator[types.ModuleType]:
    """Return the package and all its modules that can be imported."""
    package = importlib.import_module(name)
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{name}.", onerror=lambda _: None):
        if found.name.endswith("__main__"):
            continue
        try:
            yield importlib.import_module(found.name)
        except Exception:  # wants what is not installed
            continue


def names(package: str, depth: int) -> Iterator[str]:
    """Return dotted names of all attributes, and of their attributes, down to ``depth``."""
    for module in modules(package):
        yield module.__name__
        yield from _below(module, module.__name__, depth)


def _below(owner: object, path: str, depth: int) -> Iterator[str]:
    for name in dir(owner):
        yield f"{path}.{name}"
        if depth > 1:
            try:
                value = getattr(owner, name)
            except Exception:
                continue
            if isinstance(value, types.ModuleType | type) and not isinstance(
                value, types.GenericAlias
            ):
                yield from _below(value, f"{path}.{name}", depth - 1)


def hostile(outside: Path) -> list:
    """Return arguments that could run, write or unpickle something."""
    command = f"touch {outside}/mark"
    texts = [f"{outside}/evil", command, f"{outside}/load.pkl", f"file://{outside}/evil"]
    return [
        *(*texts, ["sh", "-c", command], "http://127.0.0.1:9/x", "${oc.env:HOME}"),
        {"_target_": "os.system", "command": command},
        {"_target_": "triptych.cli.startup.replace_process", "command": ["/bin/sh", "-c", command]},
        {"_target_": "triptych.networks.mlp.MLP", "shape": [2]},
        {"_target_": "triptych.data.folder.ImageFolder", "root": f"{outside}"},
        {"_target_": "triptych.callbacks.ema.EMA", "_partial_": True},
        ["cpu", {"_target_": "subprocess.Popen", "args": command}],
        {"__reduce__": command},
        *(True, None, -1, 3, 0.5, [2, 2], float("nan")),
    ]


def _required(made: type) -> list[str]:
    try:
        parameters = inspect.signature(made).parameters.values()
    except ValueError:  # a typed dict
        return []
    return [
        p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]


def main() -> None:
    from triptych.config.build import build
    from triptych.config.keys import class_arguments
    from triptych.config.trust import import_class, trusted_packages
    from triptych.data.build import build_data
    from triptych.errors import UserError

    folder, how = sys.argv[1:]
    importlib.import_module("diffusers.models.unets.unet_2d")  # whose urllib3 tries to bind ::1
    warnings.simplefilter("ignore")
    inside, outside = Path(folder, "run"), Path(folder, "outside")
    for path in (inside, outside):
        path.mkdir()
    os.chdir(inside)

    class Opener:
        def __reduce__(self):
            return (Path.touch, (outside / "mark",))

    (outside / "load.pkl").write_bytes(pickle.dumps(Opener()))
    prefixes = [("triptych", 2), ("torch.optim", 2)]
    if how == "fast":  # which name was meant opens nothing, and is half of the time
        difflib.get_close_matches = lambda *_, **__: []  # type: ignore[assignment]
    if how == "all":
        prefixes += [("pytorch_lightning", 2), ("hydra", 2), ("omegaconf", 2), ("torch.utils", 1)]
    watch = Watch(str(inside))
    trusted_packages()  # reads the project file once
    tried, accepted = 0, []
    for prefix, depth in prefixes:
        found = list(dict.fromkeys(names(prefix, depth)))
        if how == "fast":
            near = set(names(prefix, 1))
            found = [name for i, name in enumerate(found) if i % SAMPLE == 0 or name in near]
        for name in found:
            loaded = len(sys.modules)
            tried += 1
            watch.on = True
            try:
                import_class(name)
                accepted.append(name)
            except UserError:
                if len(sys.modules) != loaded:
                    watch.seen.append(f"{name} was refused, but modules were imported for it")
            finally:
                watch.on = False
    asked = made = 0
    values = hostile(outside)[:: 1 if how == "all" else 2]
    nodes = []
    for name in accepted:
        keys = sorted(class_arguments(name)[0])
        required = _required(import_class(name))
        for value in values:
            nodes.append({"_target_": name} | dict.fromkeys(keys, value))
            nodes.append({"_target_": name} | dict.fromkeys(required, value))
            for key in keys if how == "all" else []:
                nodes.append({"_target_": name} | dict.fromkeys(required, 3) | {key: value})
                nodes.append({"_target_": name, "_partial_": True, key: value})
    for node in nodes:
        asked += 1
        watch.on = True
        try:
            object_ = build(node, "x")
            made += 1
            is_data = hasattr(object_, "prepare_data") and hasattr(object_, "load")
            if is_data and "Cifar" not in node["_target_"]:
                build_data({"data": node}, download=False)
        except Exception:  # refused, by the gate or by the class
            pass
        finally:
            watch.on = False
    found = {
        "tried": tried,
        "accepted": accepted,
        "asked": asked,
        "made": made,
        "seen": watch.seen[:50],
    }
    found["marks"] = sorted(p.name for p in outside.iterdir() if p.name != "load.pkl")
    Path(folder, "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
