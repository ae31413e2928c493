"""Real servers for the tests, shared by as many of them as possible."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.double_process import DoubleProcess
from tests.server.processes import ServerProcess

GATEWAY = "gateway"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The product as a user starts it, with an embedded Triton. Stopping it is checked."""
    process = ServerProcess(GATEWAY, tmp_path_factory.mktemp("server"), options=["-N"])
    yield process
    process.stop()


@pytest.fixture(scope="session")
def demo_server(all_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The product with an embedded Triton and tiny engines (64x80 pixels) of every pipeline that has some.

    Its pictures are textures that depend on pipeline, prompt and seed and on nothing else, many per second.
    The bitrate is far above the product's, so that a decoded picture is close to what the pipeline made.
    """
    env = {"WANSTREAM_ENGINES_DIR": str(all_engines / "engines")}
    env |= {f"WANSTREAM_VIDEO_BITRATE_{name}": "20000000" for name in ("MIN", "DEFAULT", "MAX")}
    process = ServerProcess(GATEWAY, tmp_path_factory.mktemp("demo"), env, ["-N"])
    yield process
    process.stop(within_s=60.0)  # it unloads many models


@pytest.fixture(scope="session")
def double_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """A gateway whose six pipelines are all served by the double; no Triton."""
    process = DoubleProcess(tmp_path_factory.mktemp("double"))
    yield process
    process.stop()


class CaseServers:
    """Servers for the wire-level cases: a common one, and one at a time with an environment of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._common: DoubleProcess | None = None
        self._special: DoubleProcess | None = None
        self._started = 0

    def with_env(self, env: dict[str, str]) -> DoubleProcess:
        """A healthy server with these settings; an earlier one with settings of its own is stopped."""
        if env:
            self._stop_special()
            self._special = self._start(env)
            return self._special
        if self._common is None:
            self._common = self._start({})
        return self._common

    def close(self) -> None:
        self._stop_special()
        if self._common is not None:
            self._common.stop()

    def _start(self, env: dict[str, str]) -> DoubleProcess:
        self._started += 1
        return DoubleProcess(self._directory / str(self._started), env, triton=True)

    def _stop_special(self) -> None:
        special, self._special = self._special, None
        if special is not None:
            special.stop()


@pytest.fixture(scope="session")
def case_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaseServers]:
    servers = CaseServers(tmp_path_factory.mktemp("cases"))
    yield servers
    servers.close()
