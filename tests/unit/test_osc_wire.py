"""OSC datagrams: what a second implementation writes is read, and no other bytes do harm."""

import random
import struct
import time
from typing import Any

import pytest
from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message import OscMessage, ParseError
from pythonosc.osc_message_builder import OscMessageBuilder

from gateway.osc.wire import MAX_DATAGRAM_BYTES, MAX_MESSAGES, Bundle, Impulse, Message, OscError, decode

_MUTATIONS = 20_000


def message(address: str, *arguments: Any) -> bytes:
    """As python-osc writes it; a pair is a type tag and a value."""
    builder = OscMessageBuilder(address)
    for argument in arguments:
        value, tag = argument if isinstance(argument, tuple) else (argument, None)
        builder.add_arg(value, tag)
    return builder.build().dgram


def bundle(*elements: bytes, due: float = IMMEDIATELY) -> bytes:
    builder = OscBundleBuilder(due)
    head = builder.build().dgram
    return head + b"".join(struct.pack(">i", len(element)) + element for element in elements)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [7],
        [-(2**31)],
        [0.5],
        ["a red boat", "é 船"],
        [b"\x00\x01\x02"],
        [True, False, None],
        [(2**40, "h"), (1e-300, "d")],
        [[1000, 500], "x"],
        [[1, [2.5, ["deep"]]]],
    ],
    ids=repr,
)
def test_python_osc_s_arguments_are_read(arguments: list[Any]) -> None:
    [read] = decode(message("/scope/key", *arguments))

    plain = [argument[0] if isinstance(argument, tuple) else argument for argument in arguments]
    assert read == Bundle(None, [Message("/scope/key", plain)])


def test_an_impulse_and_missing_tags_are_read() -> None:
    assert decode(b"/scope/reset_cache\0\0,I\0\0")[0].messages[0].arguments == [Impulse.IMPULSE]
    assert decode(b"/scope/reset_cache\0\0")[0].messages[0].arguments == []


def test_bundles_keep_their_messages_together_and_have_times_of_their_own() -> None:
    soon = time.time() + 0.5
    inner = bundle(message("/scope/b", 2), due=soon)

    first, second = decode(bundle(message("/scope/a", 1), inner, message("/scope/c", 3)))

    assert [(m.address, m.arguments) for m in first.messages] == [("/scope/a", [1]), ("/scope/c", [3])]
    assert [(m.address, m.arguments) for m in second.messages] == [("/scope/b", [2])]
    assert first.due is None
    assert second.due == pytest.approx(soon, abs=1e-3)


def nested(depth: int) -> bytes:
    datagram = message("/scope/paused", True)
    for _ in range(depth):
        datagram = bundle(datagram)
    return datagram


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\0" * 8,
        b"scope\0\0\0",
        b"/scope/prompt",
        b"/scope/prompt\0",  # not filled up
        b"/s\0\0s\0\0\0",  # no comma
        b"/s\0\0,i\0\0\0\0",
        b"/s\0\0,b\0\0\xff\xff\xff\xff",
        b"/s\0\0,b\0\0\x7f\xff\xff\xff",
        b"/s\0\0,[\0\0",
        b"/s\0\0,]\0\0",
        b"/s\0\0,q\0\0",
        b"/s\0\0,s\0\0\xff\xfe\0\0",
        b"/s\0\0," + b"[" * 50 + b"]" * 50 + b"\0\0\0",
        b"#bundle\0",
        b"#bundle\0" + b"\0" * 8 + b"\xff\xff\xff\xff",
        b"#bundle\0" + b"\0" * 8 + b"\0\0\0\0",
        nested(5),
        nested(350),
        bundle(*[message("/a", 1)] * (MAX_MESSAGES + 1)),
        message("/a", "x" * MAX_DATAGRAM_BYTES),
    ],
    ids=lambda datagram: repr(datagram)[:40],
)
def test_what_is_not_osc_or_too_much_is_refused(datagram: bytes) -> None:
    with pytest.raises(OscError) as caught:
        decode(datagram)

    assert caught.value.reason == "parse"


def seeds() -> list[bytes]:
    return [
        message("/scope/prompt", "a red boat at sea"),
        message("/scope/noise_scale", 0.5),
        message("/scope/denoising_step_list", [1000, 750, 500]),
        message("/wanstream/main/base_seed", (2**40, "h"), (0.1, "d"), b"blob", True, None),
        bundle(message("/scope/a", 1), message("/scope/b", "two"), bundle(message("/scope/c", 3.0))),
    ]


def mutated(datagram: bytes, dice: random.Random) -> bytes:
    data = bytearray(datagram)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) or 1)
        action = dice.randrange(5)
        if action == 0 and data:
            data[at] = dice.randrange(256)
        elif action == 1:
            data[at:at] = dice.randbytes(dice.randint(1, 8))
        elif action == 2:
            del data[at : at + dice.randint(1, 8)]
        elif action == 3:
            data = data[:at]
        else:
            data += data[at : at + 16]
    return bytes(data)


def by_python_osc(datagram: bytes) -> tuple[str, list[Any]] | None:
    try:
        read = OscMessage(datagram)
    except (ParseError, UnicodeDecodeError, ValueError, OverflowError):
        return None
    return read.address, list(read.params)


def test_mutated_datagrams_are_refused_or_read_as_python_osc_reads_them() -> None:
    """20 000 of them with a fixed seed; python-osc is the second opinion on single messages."""
    dice = random.Random(20)
    kinds, refused, alike = seeds(), 0, 0
    for _ in range(_MUTATIONS):
        datagram = mutated(dice.choice(kinds), dice)
        try:
            [first, *_] = decode(datagram)
        except OscError:
            refused += 1
            continue
        if datagram.startswith(b"/"):
            [ours] = first.messages
            if any(argument is Impulse.IMPULSE for argument in ours.arguments):
                continue
            assert repr((ours.address, ours.arguments)) == repr(by_python_osc(datagram)), datagram
            alike += 1

    assert refused > _MUTATIONS / 10
    assert alike > _MUTATIONS / 10
