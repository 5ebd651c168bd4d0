"""Pickles that may be hostile, read without building or calling anything that they name."""

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

MAX_PICKLE = 64 << 20
_MAX_SIZES = 16  # of a tensor; Megatron's have at most 5
_MAX_ARGUMENTS = 64  # of one call: a long list that a pickle keeps would be copied by every few bytes that pass it
_MAX_KEY_BITS = 64  # a longer number is hashed anew by every few bytes that name it
# What checkpoints name: the standard library's exact names, and whole packages. Whatever it is, it becomes `Inert`.
_KNOWN = {
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    ("_io", "BytesIO"),
    ("_codecs", "encode"),
    ("builtins", "getattr"),  # Python 3.11.0 to 3.11.3 pickle a member of an enumeration as getattr(class, name)
    *(("builtins", name) for name in ("object", "set", "list", "dict", "tuple", "int", "float", "bool", "complex")),
    ("copyreg", "_reconstructor"),
    ("collections", "deque"),
    ("functools", "partial"),
    ("signal", "Signals"),
    ("datetime", "timedelta"),
}
_KNOWN_PACKAGES = ("torch", "megatron", "numpy", "nemo", "lightning", "transformer_engine", "pathlib")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # torch.save pickles in protocol 2
_DICTS = {("collections", "OrderedDict"), ("collections", "defaultdict")}


class Inert:
    """Stands for an object of a class that is not built: accepts the pickle's arguments and state, and uses none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def sizes(values: Any = ()) -> tuple[Any, ...]:
    """A tensor's shape or strides. Raises pickle.UnpicklingError for more than any tensor has."""
    if len(values) > _MAX_SIZES:
        raise pickle.UnpicklingError(f"a tensor has {len(values)} dimensions")
    return tuple(values)


def _is_key(value: Any) -> bool:
    return isinstance(value, str | Inert) or (isinstance(value, int) and value.bit_length() <= _MAX_KEY_BITS)


def _checked(opcode: bytes, num_arguments: int) -> Callable[["DataUnpickler"], None]:
    """The call of an opcode whose arguments are the topmost `num_arguments` objects, where none of them is long.

    Raises pickle.UnpicklingError for more arguments than any checkpoint's, and for a tuple longer than a shape.
    """
    call: Callable[[Any], None] = pickle._Unpickler.dispatch[opcode[0]]

    def checked(self: "DataUnpickler") -> None:
        if (count := max(map(len, self.stack[-num_arguments:]))) > _MAX_ARGUMENTS:
            raise pickle.UnpicklingError(f"a call has {count} arguments")
        call(self)
        if isinstance(self.stack[-1], tuple):
            sizes(self.stack[-1])

    return checked


class Refused(ValueError):
    """Raised for a pickle that asks for a class or function it may not have."""


class DataUnpickler(pickle._Unpickler):
    """Reads a pickle that may be hostile; a subclass's `find_class` decides which names it may use.

    It is the unpickler written in Python, because one opcode can make the one in C fill gigabytes. Keys of dicts are
    strings, numbers and Inert objects: tuples nested in tuples can take forever to hash.
    """

    # Of the class in Python's own pickle.py, which type checkers do not see.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]]

    def read_all(self, where: str) -> Any:
        """The pickled object. Raises ValueError for anything that is wrong with it. where: the file, for the error."""
        try:
            return self.load()
        except Refused:
            raise
        except Exception as error:  # a damaged pickle can raise anything at all
            raise ValueError(f"{where} is damaged ({type(error).__name__}: {error}).") from error

    def set_items(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def _set(self, key: Any, value: Any) -> None:
        if not _is_key(key):
            raise pickle.UnpicklingError(f"a key is a {type(key).__name__} that no checkpoint has")
        self.stack[-1][key] = value

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):  # no other object takes attributes: an OrderedDict's is not read
            self.stack[-1].__setstate__(state)

    def refuse(self) -> None:
        raise pickle.UnpicklingError("an object, set, bytearray or number in a form that no checkpoint needs")

    dispatch = pickle._Unpickler.dispatch | {
        pickle.SETITEMS[0]: set_items,
        pickle.SETITEM[0]: set_item,
        pickle.BUILD[0]: build,
        pickle.REDUCE[0]: _checked(pickle.REDUCE, 1),
        pickle.NEWOBJ[0]: _checked(pickle.NEWOBJ, 1),
        pickle.NEWOBJ_EX[0]: _checked(pickle.NEWOBJ_EX, 2),
        **dict.fromkeys((pickle.DICT[0], pickle.ADDITEMS[0], pickle.FROZENSET[0]), refuse),
        **dict.fromkeys((pickle.INST[0], pickle.OBJ[0]), refuse),  # Python 2's own calls
        # Python reserves a bytearray before it reads it. The other long forms take no more than the file has left.
        pickle.BYTEARRAY8[0]: refuse,
        pickle.LONG4[0]: refuse,  # more than 255 bytes
    }


class FieldsUnpickler(DataUnpickler):
    """Reads dicts, lists, numbers and texts; every other object becomes Inert, its attributes in `state`.

    What cannot be held in such values (entries under odd keys, members of sets) is left out.
    """

    def __init__(self, file: BinaryIO, where: str):
        super().__init__(file)
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_2.get(module, module)
        if (module, name) in _DICTS:
            return lambda *_: {}
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) in _KNOWN or module.split(".")[0] in _KNOWN_PACKAGES:
            return Inert
        raise Refused(
            f"{self._where} asks for {module}.{name} when it is loaded, as no checkpoint does; it was refused."
        )

    def persistent_load(self, pid: Any) -> Inert:
        return Inert()

    def _set(self, key: Any, value: Any) -> None:
        if isinstance(self.stack[-1], dict) and _is_key(key):
            self.stack[-1][key] = value

    def add_one(self) -> None:
        self._extend([self.stack.pop()])

    def add_many(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def drop(self) -> None:
        self.pop_mark()

    def empty(self) -> None:
        self.pop_mark()
        self.append(frozenset())

    dispatch = DataUnpickler.dispatch | {
        pickle.APPEND[0]: add_one,
        pickle.APPENDS[0]: add_many,
        pickle.ADDITEMS[0]: drop,
        pickle.FROZENSET[0]: empty,
    }


def fields_of_pickle(content: bytes, where: str) -> Any:
    """The object of a pickle as FieldsUnpickler reads it. Raises ValueError where it is damaged or refused."""
    return FieldsUnpickler(io.BytesIO(content), where).read_all(where)


def fields_of_torch_file(content: bytes, where: str) -> Any:
    """The object that was given to torch.save as FieldsUnpickler reads it; `content` is the whole file.

    Raises ValueError where it is damaged or refused.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > MAX_PICKLE:
                raise ValueError(f"its index has more than {MAX_PICKLE} bytes")
            pickled = archive.read(name)
    except Exception as error:  # a damaged zip raises a dozen kinds
        raise ValueError(f"{where} is no complete torch.save file ({type(error).__name__}: {error}).") from error
    return fields_of_pickle(pickled, where)
