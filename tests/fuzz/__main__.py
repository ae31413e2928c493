"""Random requests and random messages for a while: `python -m tests.fuzz --minutes 15`.

Ends with code 0 when every answer was right, every stream went on and nothing was left behind; otherwise
the first failure ends the run and is printed.
"""

import argparse
import asyncio
import logging
import random
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tests.fuzz.server import fuzz_beside_stream, fuzz_messages, start_server

logger = logging.getLogger("tests.fuzz")


async def main(seconds: float, seed: int) -> None:
    """Both kinds at the same time, each on a server of its own."""
    with tempfile.TemporaryDirectory() as directory:
        http = await start_server(Path(directory) / "http")
        try:
            channel = await start_server(Path(directory) / "channel")
            try:
                sent = await _both(
                    fuzz_messages(channel, seconds, seed), fuzz_beside_stream(http, seconds, seed)
                )
            finally:
                channel.stop()
        finally:
            http.stop()
    logger.info("%d messages sent; no failure", sent)


async def _both(messages: Coroutine[Any, Any, int], requests: Coroutine[Any, Any, None]) -> int:
    """The result of the first; when one fails, the other ends before the servers do."""
    tasks = asyncio.ensure_future(messages), asyncio.ensure_future(requests)
    try:
        await asyncio.gather(*tasks)
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=10)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="to repeat a run")
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    options = _arguments()
    logger.info("%g minutes, seed %d", options.minutes, options.seed)
    asyncio.run(main(options.minutes * 60, options.seed))
