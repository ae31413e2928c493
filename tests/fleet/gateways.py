"""Gateways of one fleet, in processes of their own, with the double in Triton's place."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import wait_status
from tests.server.processes import free_port

SETTINGS = {
    "PIPELINE": "longlive",
    "WANSTREAM_PIPELINE_PARAMS": '{"height": 96, "width": 128}',
    "WANSTREAM_MAX_SESSIONS": "8",
}
PROMPTS = {"prompts": [{"text": "a", "weight": 1.0}]}


@contextmanager
def fleet(
    directory: Path, count: int = 2, settings: Mapping[str, str] | None = None
) -> Iterator[Sequence[DoubleProcess]]:
    """`count` gateways that know each other."""
    ports = [free_port() for _ in range(count)]
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    with ExitStack() as stack:
        gateways = []
        for number, port in enumerate(ports):
            env = {**SETTINGS, **(settings or {})}
            env |= {"WANSTREAM_NODE": f"127.0.0.1:{port}", "WANSTREAM_PEERS": peers}
            home = directory / str(number)
            gateway = DoubleProcess(home, env, port=port)
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            stack.callback(gateway.kill)
            gateways.append(gateway)
        yield gateways


async def loaded(gateways: Sequence[DoubleProcess]) -> None:
    """Wait until each has its pipeline."""
    for gateway in gateways:
        await wait_status(gateway.client, "loaded")
