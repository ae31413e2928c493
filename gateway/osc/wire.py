"""Open Sound Control 1.0 as it comes over the wire: datagrams become bundles of messages.

Everything here comes from a network that anybody may write to: whatever is not OSC is an `OscError`, with a
bounded amount of work before it is known.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

MAX_DATAGRAM_BYTES: Final = 8 << 10
MAX_MESSAGES: Final = 64  # in one datagram
MAX_DEPTH: Final = 4  # of bundles in bundles, and of arrays in arrays

_BUNDLE: Final = b"#bundle\x00"
_NTP_EPOCH_S: Final = 2_208_988_800  # 1900 to 1970
_IMMEDIATELY: Final = 1


class OscError(Exception):
    """Something that was sent and cannot be used. reason: a word for counters."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Impulse(Enum):
    """The argument `I`: a button that was pressed."""

    IMPULSE = "impulse"


@dataclass(frozen=True, slots=True)
class Message:
    """arguments: int, float, str, bytes, bool, None, `Impulse`, and lists of these."""

    address: str
    arguments: list[Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """Messages that take effect together. due: when, in Unix seconds; None: now."""

    due: float | None = None
    messages: list[Message] = field(default_factory=list)


def decode(datagram: bytes) -> list[Bundle]:
    """The bundles of one datagram, in order; a single message is a bundle of its own. Raises OscError."""
    if len(datagram) > MAX_DATAGRAM_BYTES:
        raise _malformed(f"a datagram of {len(datagram)} bytes; at most {MAX_DATAGRAM_BYTES} are read")
    bundles: list[Bundle] = []
    if datagram.startswith(_BUNDLE):
        _read_bundle(_Reader(datagram), bundles, 1)
    else:
        bundles.append(Bundle(messages=[_read_message(_Reader(datagram))]))
    if sum(len(bundle.messages) for bundle in bundles) > MAX_MESSAGES:
        raise _malformed(f"more than {MAX_MESSAGES} messages in one datagram")
    return bundles


def _malformed(text: str) -> OscError:
    return OscError("parse", f"Not OSC: {text}")


class _Reader:
    """Takes one value after another from a datagram, or from an element of a bundle."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if count < 0 or len(taken) < count:
            raise _malformed("it ends in the middle of a value")
        self._at += count
        return taken

    def number(self, form: str, size: int) -> Any:
        return struct.unpack(form, self.take(size))[0]

    def text(self) -> str:
        """A text with the zeros that fill it up to a multiple of four bytes."""
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise _malformed("a text without an end")
        raw = self.take(end - self._at)
        self.take(4 - len(raw) % 4)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise _malformed("a text that is not UTF-8") from None

    def blob(self) -> bytes:
        length = self.number(">i", 4)
        data = self.take(length)
        self.take(-length % 4)
        return data


def _read_bundle(reader: _Reader, bundles: list[Bundle], depth: int) -> None:
    """Append a bundle and those in it. They are not one with it: each has a time of its own."""
    if depth > MAX_DEPTH:
        raise _malformed(f"bundles in bundles deeper than {MAX_DEPTH}")
    reader.take(len(_BUNDLE))
    tag = reader.number(">Q", 8)
    bundle = Bundle(None if tag <= _IMMEDIATELY else tag / 2**32 - _NTP_EPOCH_S)
    bundles.append(bundle)
    while not reader.at_end:
        element = reader.take(reader.number(">i", 4))
        if element.startswith(_BUNDLE):
            _read_bundle(_Reader(element), bundles, depth + 1)
        else:
            bundle.messages.append(_read_message(_Reader(element)))


def _read_message(reader: _Reader) -> Message:
    address = reader.text()
    if not address.startswith("/"):
        raise _malformed("an address without a / at its beginning")
    if reader.at_end:  # old senders leave the tags away where there is no argument
        return Message(address, [])
    tags = reader.text()
    if not tags.startswith(","):
        raise _malformed("no type tags after the address")
    return Message(address, _read_arguments(reader, tags[1:]))


_READERS: Final[dict[str, Callable[[_Reader], Any]]] = {
    "i": lambda reader: reader.number(">i", 4),
    "h": lambda reader: reader.number(">q", 8),
    "f": lambda reader: reader.number(">f", 4),
    "d": lambda reader: reader.number(">d", 8),
    "s": _Reader.text,
    "S": _Reader.text,
    "b": _Reader.blob,
    "T": lambda _: True,
    "F": lambda _: False,
    "N": lambda _: None,
    "I": lambda _: Impulse.IMPULSE,
}


def _read_arguments(reader: _Reader, tags: str) -> list[Any]:
    arrays: list[list[Any]] = [[]]
    for tag in tags:
        if tag == "[":
            arrays[-1].append([])
            arrays.append(arrays[-1][-1])
        elif tag == "]":
            arrays.pop()
        elif tag in _READERS:
            arrays[-1].append(_READERS[tag](reader))
        else:
            raise _malformed(f"an argument of type {tag!r}; known are {' '.join(_READERS)} and arrays")
        if not 1 <= len(arrays) <= MAX_DEPTH:
            raise _malformed("brackets that do not match, or too many")
    if len(arrays) != 1:
        raise _malformed("an array without an end")
    return arrays[0]
