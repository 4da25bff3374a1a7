"""A sitecustomize that counts: which items each training process of a command has seen, and in how many."""

from pathlib import Path

HOOK = """
import atexit, importlib.abc, importlib.util, os, sys

class Counting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "triptych.data.order":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            batch = module.TrainLoader.batch

            def counted(loader, step):
                found = batch(loader, step)
                with open(f"{folder}/{os.getpid()}", "a") as file:
                    print(loader.world, step, *found.index.tolist(), file=file)
                return found

            module.TrainLoader.batch = counted

        spec.loader.exec_module = exec_module
        return spec

folder = os.environ["COUNT"]
sys.meta_path.insert(0, Counting())
"""


def install(folder: Path) -> dict[str, str]:
    """Environment of a command that is to be counted; the counts lie in ``folder``."""
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "sitecustomize.py").write_text(HOOK)
    (folder / "counts").mkdir()
    import os

    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    return {"COUNT": str(folder / "counts"), "PYTHONPATH": path}


def counts(folder: Path) -> dict[int, list[list[int]]]:
    """{number of processes: [items seen, one list a process]} of steps below 25."""
    found: dict[int, list[list[int]]] = {}
    for path in (folder / "counts").iterdir():
        lines = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
        world = lines[-1][0]  # the first line is of the check before training, which has no shares
        steps = {step: items for shared, step, *items in lines if shared == world and step < 25}
        found.setdefault(world, []).append([item for items in steps.values() for item in items])
    return found
