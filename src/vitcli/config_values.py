"""Values of a configuration: their kinds, their bounds, and how they are read from a command line or a file.

A key of a configuration is a field that `key` makes: its default, what it is in a sentence, its bounds, and whether a run that is
resumed may have another value stand on one line. Everything else that is known of it is derived from there.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from vitcli.errors import UsageError, did_you_mean

Size = tuple[int, int]
"""Height and width in pixels, or rows and columns of a grid."""
Range = tuple[float, float]
Stats = tuple[float, ...]
"""One number a channel, of pixels scaled to 0..1."""
RGB, MOST_CHANNELS = 3, 1000
"""Channels of an image: the usual ones, and more than any camera's."""
Seconds = Annotated[float, "seconds"]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 2


def shown(value: Any) -> str:
    """A value in an error: a stranger's can be of any length and depth."""
    return _SHORT.repr(value)


# --- keys --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Key:
    """What stands on a key's line besides its kind and its default. Bounds hold for each number of a list."""

    text: str
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    longest: int | None = None  # numbers of a list
    why: str = ""  # what the upper bound would mean
    compared: bool = True  # whether a run that is resumed must have the same value
    settable: bool = True  # by a user; else it follows from the command, the checkpoint or the data
    fixed: bool = False  # by the checkpoint that a run starts from
    quiet: bool = False  # left out of what is written where it has its default

    def fault(self, value: Any) -> str:
        """Why a value is out of bounds; empty where it is not, or is left out."""
        numbers = value if isinstance(value, tuple) else (value,)
        if self.longest is not None and len(numbers) > self.longest:
            return f"has more than {self.longest} values"
        return next((text for number in numbers if number is not None and (text := self._of(number))), "")

    def _of(self, number: Any) -> str:
        if not isinstance(number, (int, float)):
            return ""
        tests: list[tuple[float | None, Callable[[float, float], bool]]] = [
            (self.above, lambda n, bound: n > bound),
            (self.least, lambda n, bound: n >= bound),
            (self.below, lambda n, bound: n < bound),
            (self.most, lambda n, bound: n <= bound),
        ]
        if all(bound is None or holds(number, bound) for bound, holds in tests):
            return ""
        return self._said() + (f"; at {self.below:g} {self.why}" if self.why else "")

    def _said(self) -> str:
        """The bounds in words."""
        if self.least is not None and self.most is not None:
            return f"must lie between {_plain(self.least)} and {_plain(self.most)}"
        if self.least == 0 and self.below is None:
            return "must not be negative"
        words = [
            f"{word} {_plain(bound)}"
            for word, bound in (
                ("above", self.above),
                ("at least", self.least),
                ("below", self.below),
                ("at most", self.most),
            )
            if bound is not None
        ]
        return f"must be {' and '.join(words)}"


def _plain(bound: float) -> str:
    if math.isinf(bound):
        return "infinity"
    if isinstance(bound, int) and bound >= 2**53:
        exponent = (bound + 1).bit_length() - 1
        return f"2^{exponent} - 1" if bound + 1 == 2**exponent else f"{bound:,}"
    return f"{int(bound):,}" if bound == int(bound) and abs(bound) < 1e15 else f"{bound:g}"


def key(default: Any, text: str, **rest: Any) -> Any:
    """A field of a section: its default, and the arguments of `Key`."""
    return dataclasses.field(default=default, metadata={"key": Key(text=text, **rest)})


def key_of(field: dataclasses.Field[Any]) -> Key:
    found: Key = field.metadata["key"]
    return found


def keys(cls: type) -> Iterator[tuple[str, Key]]:
    """The fields of a section, with what stands on their lines."""
    return ((field.name, key_of(field)) for field in dataclasses.fields(cls))


def written(section: Any) -> dict[str, Any]:
    """The values of a section by their keys, as files have them."""
    lines = dataclasses.fields(section)
    found = {line.name: getattr(section, line.name) for line in lines}
    return {line.name: found[line.name] for line in lines if not key_of(line).quiet or found[line.name] != line.default}


def usual(cls: type, name: str) -> str:
    """A hint at the value that a key has where nothing else is said."""
    if dict(keys(cls))[name].fixed:
        return "leave it out to take the model's own"
    value = getattr(cls(), name)
    shown = " to ".join(f"{v:g}" for v in value) if isinstance(value, tuple) and len(value) == 2 else value
    return "leave it out" if value is None else f"its default is {shown}"


def check_bounds(section: str, values: Any) -> None:
    """Raises UsageError for the first value of a section that is out of its bounds."""
    for line in dataclasses.fields(values):
        check_value(f"{section}.{line.name}", getattr(values, line.name), type(values), line)


def check_value(name: str, value: Any, cls: type, line: dataclasses.Field[Any]) -> None:
    """Raises UsageError for the value of `name`, a `line` of `cls`, where it is out of its bounds."""
    fault = key_of(line).fault(value)
    if fault:
        text = f"{value:g}" if isinstance(value, float) else shown(value) if isinstance(value, tuple) else f"{value}"
        raise UsageError(f"{name} = {text}: {fault}", usual(cls, line.name))


# --- reading -----------------------------------------------------------------------------------------------


def format_size(size: Size) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def parse_size(text: str) -> Size:
    """`384` or `96x128` (height x width, pixels)."""
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text.strip())
    if match is None or int(match[1]) == 0 or int(match[2] or 1) == 0:
        raise UsageError(f"{shown(text)} is not a size", "write 384 or 96x128 (height x width, pixels)")
    return int(match[1]), int(match[2] or match[1])


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `1h30m` or `1d` in seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    if not parts or "".join(n + u for n, u in parts) != text.strip().lower():
        raise UsageError(f"{shown(text)} is not a time", "write 90s, 10m or 1h30m")
    seconds = sum(float(number) * units[unit or "s"] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise UsageError(f"{shown(text)} is no time at all", "write 90s, 10m or 1h30m")
    return seconds


def coerce(value: Any, hint: Any, key: str) -> Any:
    """`value`, from a command line or a TOML file, as the field's type. Raises UsageError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            return None
        return coerce(value, next(a for a in args if a is not type(None)), key)
    if origin is Literal:
        text = value.lower() if isinstance(value, str) else shown(value)
        if text not in args:
            raise UsageError(
                f"{key} = {shown(value)}: not one of {', '.join(a or '(empty)' for a in args)}",
                did_you_mean(text, [a for a in args if a]),
            )
        return text
    if isinstance(value, str) and hint in (Seconds, Size):
        try:
            value = parse_seconds(value) if hint == Seconds else parse_size(value)
        except UsageError as error:
            raise UsageError(f"{key}: {error.message}", error.hint) from None
    if hint == Seconds:
        hint = float
    if hint == Size:
        if isinstance(value, int) and not isinstance(value, bool):
            value = (value, value)
        if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(type(v) is int and v > 0 for v in value):
            raise UsageError(f"{key} = {shown(value)}: not a size", "write 384 or 96x128 (height x width, pixels)")
        return tuple(value)
    if origin is tuple:
        if not isinstance(value, (str, list, tuple)):
            raise UsageError(f"{key} = {shown(value)}: not a list of numbers", "separate them by commas")
        items = value.strip("()[] ").split(",") if isinstance(value, str) else list(value)
        if len(args) != 2 or args[1] is not Ellipsis:
            if len(items) != len(args):
                raise UsageError(f"{key} = {shown(value)}: {len(args)} numbers are needed", "separate them by commas")
        return tuple(coerce(item.strip() if isinstance(item, str) else item, args[0], key) for item in items)
    return _scalar(value, hint, key)


def _scalar(value: Any, kind: type, key: str) -> Any:
    wrong = UsageError(
        f"{key} = {shown(value)}: not {'an' if kind is int else 'a'} {_TYPE_NAMES[kind]}",
        f"write {key}={_EXAMPLES[kind]}, or another {_TYPE_NAMES[kind]}" if kind in _EXAMPLES else "",
    )
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if kind is bool:
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if isinstance(value, bool):
            return value
        if isinstance(value, (str, int)) and str(value).lower() in words:
            return words[str(value).lower()]
        raise wrong
    if isinstance(value, bool):
        raise wrong
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise wrong
    if kind is int and abs(number) > 2**64:
        raise UsageError(f"{key} = {shown(value)}: beyond 64 bits", f"write {key}=3, or another integer")
    return kind(
        int(value)
        if kind is int and isinstance(value, (int, str)) and re.fullmatch(r"[+-]?\d+", str(value).strip())
        else number
    )


_EXAMPLES = {int: "3", float: "0.5", str: '"text"'}
_TYPE_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text"}
