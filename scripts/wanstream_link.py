#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["aalink>=0.2.3,<0.3", "python-osc>=1.9,<2"]
# ///
"""Let a running wanstream follow an Ableton Link session, by OSC.

    uv run scripts/wanstream_link.py --to 127.0.0.1:8000

It is no part of the server, and needs an environment of its own: aalink is under the GPL. With each beat it
sends `/wanstream/all/tempo/bpm` and `/wanstream/all/tempo/beat`.
"""

import argparse
import asyncio
import contextlib

from aalink import Link
from pythonosc.udp_client import SimpleUDPClient


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


async def follow(host: str, port: int, beats_per_bar: int) -> None:
    """Send pace and place with each beat of the session, for ever."""
    osc = SimpleUDPClient(host, port)
    link = Link(120)  # the pace of the others counts, if there are any
    link.quantum = beats_per_bar
    link.enabled = True
    while True:
        await link.sync(1)
        osc.send_message("/wanstream/all/tempo/bpm", float(link.tempo))
        osc.send_message("/wanstream/all/tempo/beat", 1.0 + link.phase % beats_per_bar)


def main() -> None:
    """Run until it is interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--to", type=_address, default=("127.0.0.1", 8000), metavar="HOST:PORT", help="of wanstream's OSC"
    )
    parser.add_argument("--beats", type=int, choices=range(1, 17), default=4, metavar="N", help="of a bar")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(follow(*options.to, options.beats))


if __name__ == "__main__":
    main()
