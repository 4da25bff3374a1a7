"""Sources of classes are read; what is evaluated in them is a trusted package's alone."""

import pytest

from triptych.config import source
from triptych.config.own_code import trusted

# reaches a module's functions without a builtin
CLASSES = "().__class__.__base__.__subclasses__()"
ESCAPE = f"[c for c in {CLASSES} if c.__name__ == '_wrap_close'][0].__init__.__globals__"


@pytest.fixture
def forget():
    caches = (trusted, source.arguments, source._find, source._module)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("trust", ["", "planted_lab"])
def test_an_annotation_runs_only_where_its_package_is_trusted(tmp_path, monkeypatch, forget, trust):
    mark = tmp_path / "mark"
    (tmp_path / "planted_lab.py").write_text(
        f'class Net:\n    def __init__(self, width: {ESCAPE}["mkdir"]({str(mark)!r}) = 8): ...\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRIPTYCH_TRUST", trust)
    assert source.arguments("planted_lab.Net").named["width"].default == 8
    assert mark.exists() == bool(trust)
