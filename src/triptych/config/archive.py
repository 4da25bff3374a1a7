"""Inspect a checkpoint file without torch, before it is loaded.

torch.load(weights_only=True) runs no code of a file's, but it takes a shape of 2^40 for one number, unpacks
what is compressed, ignores checksums, and knows more types than our checkpoints have. Here records must be
uncompressed, with checksums; tensors must lie within a record of their own length; and what the pickle names
is replaced by stand-ins, which run nothing.
"""

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from typing import IO, Any, ClassVar

from triptych.config.file import copy_plain
from triptych.errors import UserError

ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1,
    "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "complex64", "complex128",
)  # fmt: skip
RECORD = re.compile(
    r"[^/\\]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id"
    r"|data/[0-9]+)"
)
DIMENSIONS = 64  # as torch has it
SHARED = 4  # times that the tensors of a file may cover it: weights are tied, averages are not
SCHEMA = 2  # of what a checkpoint says of its run, its configuration above all
BROKEN = "damaged, truncated, or no such file of ours"
MORE = "it holds more than plain data and was not loaded"
_Unpickler: Any = vars(pickle)["_Unpickler"]


class Refused(Exception):
    """The file is no checkpoint of this project."""


class Stub:
    """Stand-in for a tensor, a storage or a type of torch; without state, so that none can be set."""

    __slots__ = ("name", "size")

    def __init__(self, name: str, size: int = 0):
        self.name, self.size = name, size


def inspect(file: IO[bytes], where: str) -> dict[str, Any]:
    """Return a checkpoint's content with stand-ins for tensors; else UserError that begins with ``where``."""
    content: dict[str, Any] = dry_run(file, where, "a checkpoint")
    known = content.get("triptych") if isinstance(content, dict) else None
    if not isinstance(known, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{where}: not written by triptych; pass a checkpoint of a run")
    if known.get("schema") != SCHEMA:
        problem = "written by another version of triptych, whose configurations have other keys"
        raise UserError(f"{where}: {problem}; pass a checkpoint of schema {SCHEMA}")
    if not _is_sound(content, known):
        raise UserError(f"{where}: {BROKEN}; pass a checkpoint of a run")
    return content | {"triptych": known | {"config": copy_plain(known.get("config"), f"{where}: config")}}


def _is_sound(content: dict[str, Any], known: dict[str, Any]) -> bool:
    step, callbacks, data = content.get("global_step", 0), content.get("callbacks", {}), known.get("data")
    if type(step) is not int or not 0 <= step < 2**63:
        return False
    if not isinstance(callbacks, dict) or not all(isinstance(state, dict) for state in callbacks.values()):
        return False
    kinds = {"fingerprint": str, "split": str, "n": dict}
    known_data = isinstance(data, dict) and all(isinstance(data.get(key), kinds[key]) for key in kinds)
    return data is None or (known_data and isinstance(data.get("items", {}), dict))


def dry_run(file: IO[bytes], where: str, kind: str) -> Any:
    """Check that a file holds tensors and plain data only; else UserError that begins with ``where``."""
    fix = f"pass {kind} of a run"
    try:
        return _read(file)
    except Refused as refused:
        raise UserError(f"{where}: {refused}; {fix}") from refused
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise UserError(f"{where}: {BROKEN}; {fix}") from error
    except Exception as error:  # the unpickler raises whatever the stand-ins and the bytes make it raise
        raise UserError(f"{where}: {MORE}; {fix}") from error


def _read(file: IO[bytes]) -> Any:
    if file.read(4) != b"PK\x03\x04":
        raise Refused(BROKEN)
    total = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        records = {}
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise Refused(f"{entry.filename[:60]} in it is compressed and was not unpacked")
            if not RECORD.fullmatch(entry.filename) or entry.filename in records:
                raise Refused(f"{entry.filename[:60]!r} in it belongs to no checkpoint")
            records[entry.filename] = entry.file_size
        if sum(records.values()) > total or archive.comment:
            raise Refused("it claims more than it holds")
        roots = {name.split("/")[0] for name in records}
        root = roots.pop() if len(roots) == 1 else ""
        if f"{root}/data.pkl" not in records:
            raise Refused(BROKEN)
        if archive.testzip() is not None:  # torch does not look at checksums
            raise Refused(BROKEN)
        sizes = {name.rpartition("/")[2]: n for name, n in records.items() if "/data/" in name}
        return DryRun(io.BytesIO(archive.read(f"{root}/data.pkl")), sizes, SHARED * total).load()


class DryRun(_Unpickler):  # type: ignore[misc]  # has no types
    """Unpickle with stand-ins only; Python's implementation, as C's trusts lengths in the file."""

    dispatch: ClassVar[Any] = dict(_Unpickler.dispatch)
    for _code in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.FROZENSET, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.BYTEARRAY8, pickle.NEXT_BUFFER),
        *(pickle.READONLY_BUFFER, pickle.DICT),
    ):
        dispatch.pop(_code[0], None)

    def __init__(self, file: IO[bytes], sizes: dict[str, int], most: int):
        super().__init__(file)
        self.sizes, self.left = sizes, most

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and (name in ITEM_BYTES or name in DTYPES):
            return Stub(name)
        if (module, name) == ("torch", "Size"):
            return tuple
        raise Refused(f"it holds more than plain data ({module}.{name}) and was not loaded")

    def persistent_load(self, pid: Any) -> Stub:
        kind, storage, key, _, numel = pid
        item = ITEM_BYTES[storage.name] if kind == "storage" and type(storage) is Stub else 0
        if not item or type(numel) is not int or numel < 0 or self.sizes.get(key) != item * numel:
            raise Refused("a tensor in it claims more than it holds")
        return Stub(storage.name, numel)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stub:
        numbers = (offset, *size, *stride)
        sound = type(storage) is Stub and len(size) <= DIMENSIONS
        if not sound or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise Refused("a tensor in it is damaged")
        count = math.prod(size)
        end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
        self.left -= count * ITEM_BYTES[storage.name]
        if end > storage.size or count > storage.size or self.left < 0:
            raise Refused("a tensor in it claims more than it holds")
        return Stub("tensor", count)

    def load_reduce(self) -> None:
        call, arguments = self.stack[-2:]
        if call is OrderedDict and arguments != ():
            raise Refused(MORE)
        super().load_reduce()

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        """Accept only a state_dict's version metadata, which nothing here reads."""
        self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict:
            raise Refused(MORE)

    dispatch[pickle.BUILD[0]] = load_build

    # a key made of nested tuples takes for ever to hash
    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    @staticmethod
    def _check_keys(keys: list[Any]) -> None:
        if any(type(key) not in (str, int) for key in keys):
            raise Refused(MORE)
