"""The bridge from Ableton Link, as a process, on a double of the library that must not be in ours."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.osc.addresses import find, split
from gateway.osc.wire import Message, decode

SCRIPT = Path(__file__).parents[2] / "scripts" / "wanstream_link.py"
# A session at 97.5, in bars of `quantum` beats, which wakes a moment before or after the beat.
AALINK = """
import asyncio

class Link:
    def __init__(self, bpm):
        self.tempo, self.quantum, self.enabled, self.beats = bpm, 1.0, False, 0
        self.off = 0.002

    async def sync(self, beat):
        assert self.enabled
        await asyncio.sleep(0.01)
        self.tempo, self.beats, self.off = 97.5, self.beats + beat, -self.off

    @property
    def phase(self):
        return (self.beats + self.off) % self.quantum
"""


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    """Where the bridge sends to, while it runs in bars of three."""
    (tmp_path / "aalink.py").write_text(AALINK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(60)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, str(SCRIPT), "--to", address, "--beats", "3"]
        process = subprocess.Popen(command, env={"PYTHONPATH": str(tmp_path)})
        try:
            yield listener
        finally:
            process.terminate()
            process.wait(30)


def test_each_beat_of_a_session_sends_pace_and_place(heard: socket.socket) -> None:
    messages = [_message(heard.recv(2000)) for _ in range(8)]

    assert [split(m.address, lambda name: name) for m in messages] == [
        *[("all", "tempo/bpm"), ("all", "tempo/beat")] * 4
    ]
    values = [find(m.address.removeprefix("/wanstream/all/"))[0].convert(m.arguments) for m in messages]
    assert values[::2] == [97.5] * 4
    assert values[1::2] == pytest.approx([1.998, 3.002, 3.998, 2.002])  # 3.998 is just before the first


def _message(datagram: bytes) -> Message:
    [bundle] = decode(datagram)
    [message] = bundle.messages
    return message
