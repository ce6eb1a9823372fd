"""A pickle as a tree of plain values, read without running any of it.

The opcodes (Lib/pickletools.py) are followed by an interpreter that imports nothing and calls nothing but the few
functions it is given. Every other global becomes an inert object that holds the name, the arguments and the state.

What a stranger's stream can cost is bounded: opcodes, memory, no recursion, and no hash or comparison of anything but short
plain keys, since hashing nested tuples that share their parts takes exponential time.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex

MAX_OPCODES = 1_000_000
"""A training checkpoint of ViT-L with its optimizer has 60,000."""
MAX_TEXT = 1 << 20
"""Longer texts, bytes and lines are passed over; a text can take four times its bytes in memory."""
_MAX_KEY = 1 << 60
"""Larger integers can be made to have the same hash, and a dict of them takes quadratic time."""


class Damaged(ValueError):
    """The bytes are no pickle, are cut off, or ask for more than MAX_OPCODES."""


class Buffer(Protocol):
    """Bytes, or a file mapped into memory."""

    def __getitem__(self, place: slice, /) -> bytes: ...
    def find(self, part: bytes, start: SupportsIndex, end: SupportsIndex, /) -> int: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the stream asks for; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class Inert:
    """An object that was not made: the name of what would have made it, and what it would have been made from."""

    __slots__ = ("arguments", "entries", "items", "name", "state")

    def __init__(self, name: str, arguments: Any = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None
        self.entries: dict[Any, Any] = {}
        self.items: list[Any] = []


class InertKey:
    """A dictionary's key that is not hashed: equal to nothing but itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


Known = Mapping[tuple[str, str], Callable[[tuple[Any, ...]], Any]]
"""What is made of a call of a global, given its arguments. A function raises ValueError or TypeError for wrong ones."""


def plain_key(key: Any) -> Any:
    """`key` if hashing it is safe, else an InertKey."""
    if isinstance(key, str) or key is None or (isinstance(key, int) and -_MAX_KEY < key < _MAX_KEY):
        return key
    return InertKey(key)


_MADE_BY = ("_reconstructor", "__newobj__", "__newobj_ex__", "_reconstruct")
"""Functions of copyreg, copy and numpy whose first argument is the class that is meant."""


class Reader:
    """One pickle in `data` from `position` on; afterwards `position` is behind it."""

    def __init__(
        self,
        data: Buffer,
        position: int = 0,
        known: Known | None = None,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data, self.position = data, position
        self._known, self._persistent = known or {}, persistent
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The tree. Raises Damaged."""
        try:
            for _ in range(MAX_OPCODES):
                operate = _OPCODES.get(self._take(1)[0])
                if operate is None:
                    raise Damaged("an unknown opcode")
                if operate is _stop:
                    return self._stack.pop()
                operate(self)
        except Damaged:
            raise
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, AttributeError) as error:
            raise Damaged(f"it breaks off or contradicts itself ({type(error).__name__})") from None
        raise Damaged(f"its pickle has more than {MAX_OPCODES:,} operations")

    # --- what the opcodes are made of ---

    def _take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if count < 0 or len(taken) < count:
            raise Damaged("it is cut off")
        self.position += count
        return taken

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return number

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.position, self.position + MAX_TEXT)
        if end < 0:
            raise Damaged("a line without an end")
        line = self.data[self.position : end]
        self.position = end + 1
        return line

    def _long(self, count: int, what: str) -> bytes | Inert:
        """`count` bytes; of many only that they were there."""
        if count <= MAX_TEXT:
            return self._take(count)
        if self.position + count > len(self.data):
            raise Damaged("it is cut off")
        self.position += count
        return Inert(what)

    def _text(self, count: int) -> str | Inert:
        text = self._long(count, "str")
        return text if isinstance(text, Inert) else text.decode("utf-8", "surrogatepass")

    def _latin(self, count: int) -> str | Inert:
        """A Python 2 text, which may be bytes as well."""
        text = self._long(count, "str")
        return text if isinstance(text, Inert) else text.decode("latin-1")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _store(self, target: Any, pairs: list[Any]) -> None:
        """keys and values in turn into a dictionary, or what stands for one."""
        table = target.entries if isinstance(target, Inert) else target
        if not isinstance(table, dict) or len(pairs) % 2:
            raise Damaged("entries of what is no table")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            table[plain_key(key)] = value

    def _append(self, target: Any, items: list[Any]) -> None:
        items_of = target.items if isinstance(target, Inert) else target
        if not isinstance(items_of, list):
            raise Damaged("items of what is no list")
        items_of.extend(items)

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Global) and isinstance(arguments, tuple):
            make = self._known.get((function.module, function.name))
            if make is not None:
                return make(arguments)
            if function.name in _MADE_BY and arguments and isinstance(arguments[0], Global):
                return Inert(str(arguments[0]), arguments)
        return Inert(str(function) if isinstance(function, Global) else "an object of its own", arguments)

    def _build(self, state: Any) -> None:
        """The state of the object on top. Attributes of plain containers, such as a state_dict's version numbers, are left out."""
        made = self._stack[-1]
        if isinstance(made, Inert):
            made.state = state

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Damaged("a global that is no name")
        self._push(Global(module, name))

    def _address(self, address: Any) -> None:
        self._push(Inert("a persistent id") if self._persistent is None else self._persistent(address))


def _stop(reader: Reader) -> None:
    raise Damaged("no end")  # `load` returns before


def _int(text: bytes) -> int | bool:
    if text in (b"00", b"01"):  # how protocol 0 writes truth values
        return text == b"01"
    return int(text.rstrip(b"L"))


def _long_int(reader: Reader, count: int) -> Any:
    """A little-endian integer. One of more than a kilobyte is nobody's size or step number."""
    if count > 1024:
        reader._long(count, "int")
        return Inert("int")
    return int.from_bytes(reader._take(count), "little", signed=True)


def _object(reader: Reader, function: Any, arguments: Any) -> None:
    reader._push(reader._call(function, tuple(arguments)))


def _reduce(reader: Reader) -> None:
    arguments = reader._stack.pop()
    reader._stack[-1] = reader._call(reader._stack[-1], arguments)


def _newobj_ex(reader: Reader) -> None:
    reader._stack.pop()
    _reduce(reader)


def _obj(reader: Reader) -> None:
    function, *arguments = reader._since_mark()
    _object(reader, function, arguments)


def _inst(reader: Reader) -> None:
    function = Global(reader._line().decode(), reader._line().decode())
    _object(reader, function, reader._since_mark())


def _stack_global(reader: Reader) -> None:
    name, module = reader._stack.pop(), reader._stack.pop()
    reader._named(module, name)


def _tuple(count: int) -> Callable[[Reader], None]:
    def made(reader: Reader) -> None:
        if len(reader._stack) < count:
            raise Damaged("a tuple of what is not there")
        reader._stack[-count:] = [tuple(reader._stack[-count:])]

    return made


def _pop(reader: Reader) -> None:
    if reader._stack:
        reader._stack.pop()
    else:
        reader._since_mark()


def _pair(reader: Reader) -> None:
    value, key = reader._stack.pop(), reader._stack.pop()
    reader._store(reader._stack[-1], [key, value])


def _pairs(reader: Reader) -> None:
    pairs = reader._since_mark()
    reader._store(reader._stack[-1], pairs)


def _one(reader: Reader) -> None:
    item = reader._stack.pop()
    reader._append(reader._stack[-1], [item])


def _many(reader: Reader) -> None:
    items = reader._since_mark()
    reader._append(reader._stack[-1], items)


def _dict(reader: Reader) -> None:
    table: dict[Any, Any] = {}
    reader._store(table, reader._since_mark())
    reader._push(table)


def _frozenset(reader: Reader) -> None:
    made = Inert("frozenset")
    made.items = reader._since_mark()
    reader._push(made)


def _keep(read: Callable[[Reader], int]) -> Callable[[Reader], None]:
    """Remember the top of the stack under a number."""

    def kept(reader: Reader) -> None:
        reader._memo[read(reader)] = reader._stack[-1]

    return kept


def _recall(read: Callable[[Reader], int]) -> Callable[[Reader], None]:
    return lambda reader: reader._push(reader._memo[read(reader)])


def _pushed(make: Callable[[Reader], Any]) -> Callable[[Reader], None]:
    return lambda reader: reader._push(make(reader))


_BY_NAME: dict[str, Callable[[Reader], object]] = {
    "PROTO": lambda r: r._take(1),
    "FRAME": lambda r: r._take(8),
    "STOP": _stop,
    # plain values
    "NONE": _pushed(lambda r: None),
    "NEWTRUE": _pushed(lambda r: True),
    "NEWFALSE": _pushed(lambda r: False),
    "INT": _pushed(lambda r: _int(r._line())),
    "LONG": _pushed(lambda r: _int(r._line())),
    "BININT": _pushed(lambda r: r._number("<i")),
    "BININT1": _pushed(lambda r: r._number("<B")),
    "BININT2": _pushed(lambda r: r._number("<H")),
    "LONG1": _pushed(lambda r: _long_int(r, r._number("<B"))),
    "LONG4": _pushed(lambda r: _long_int(r, r._number("<I"))),
    "FLOAT": _pushed(lambda r: float(r._line())),
    "BINFLOAT": _pushed(lambda r: struct.unpack(">d", r._take(8))[0]),
    "STRING": _pushed(lambda r: r._line()[1:-1].decode("latin-1")),
    "UNICODE": _pushed(lambda r: r._line().decode("raw-unicode-escape")),
    "BINSTRING": _pushed(lambda r: r._latin(r._number("<I"))),
    "SHORT_BINSTRING": _pushed(lambda r: r._latin(r._number("<B"))),
    "BINUNICODE": _pushed(lambda r: r._text(r._number("<I"))),
    "SHORT_BINUNICODE": _pushed(lambda r: r._text(r._number("<B"))),
    "BINUNICODE8": _pushed(lambda r: r._text(r._number("<Q"))),
    "BINBYTES": _pushed(lambda r: r._long(r._number("<I"), "bytes")),
    "SHORT_BINBYTES": _pushed(lambda r: r._long(r._number("<B"), "bytes")),
    "BINBYTES8": _pushed(lambda r: r._long(r._number("<Q"), "bytes")),
    "BYTEARRAY8": _pushed(lambda r: r._long(r._number("<Q"), "bytearray")),
    # containers
    "EMPTY_LIST": _pushed(lambda r: []),
    "EMPTY_TUPLE": _pushed(lambda r: ()),
    "EMPTY_DICT": _pushed(lambda r: {}),
    "EMPTY_SET": _pushed(lambda r: Inert("set")),
    "LIST": _pushed(lambda r: r._since_mark()),
    "TUPLE": _pushed(lambda r: tuple(r._since_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "DICT": _dict,
    "FROZENSET": _frozenset,
    "APPEND": _one,
    "APPENDS": _many,
    "ADDITEMS": _many,
    "SETITEM": _pair,
    "SETITEMS": _pairs,
    # the stack and the memo
    "MARK": lambda r: r._mark(),
    "POP": _pop,
    "POP_MARK": lambda r: r._since_mark(),
    "DUP": lambda r: r._push(r._stack[-1]),
    "PUT": _keep(lambda r: int(r._line())),
    "BINPUT": _keep(lambda r: r._number("<B")),
    "LONG_BINPUT": _keep(lambda r: r._number("<I")),
    "MEMOIZE": _keep(lambda r: len(r._memo)),
    "GET": _recall(lambda r: int(r._line())),
    "BINGET": _recall(lambda r: r._number("<B")),
    "LONG_BINGET": _recall(lambda r: r._number("<I")),
    # globals, and what would be made with them
    "GLOBAL": lambda r: r._named(r._line().decode(), r._line().decode()),
    "STACK_GLOBAL": _stack_global,
    "EXT1": _pushed(lambda r: Inert(f"extension {r._number('<B')}")),
    "EXT2": _pushed(lambda r: Inert(f"extension {r._number('<H')}")),
    "EXT4": _pushed(lambda r: Inert(f"extension {r._number('<i')}")),
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "OBJ": _obj,
    "INST": _inst,
    "BUILD": lambda r: r._build(r._stack.pop()),
    "PERSID": lambda r: r._address(r._line().decode("ascii", "replace")),
    "BINPERSID": lambda r: r._address(r._stack.pop()),
}
_OPCODES = {ord(opcode.code): _BY_NAME[opcode.name] for opcode in pickletools.opcodes if opcode.name in _BY_NAME}
