"""Real server processes for tests: start, watch, stop, and look for what they leave behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.server.client import HttpClient

SHARED_MEMORY = Path("/dev/shm")
_OWN_VARIABLES = (
    "WANSTREAM_",
    "DAYDREAM_",
    "HF_",
    "TWILIO_",
    "CLOUDFLARE_",
    "CIVITAI_",
    "PIPELINE",
    "VERBOSE_",
    "SCOPE_",
    "BROWSER",
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of a server, and with its files below `home`.

    Without the demonstration too: every server would export it.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(_OWN_VARIABLES)}
    env |= {"WANSTREAM_HOME": str(home), "HF_HOME": str(home / "huggingface")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "WANSTREAM_DEMO": "off"}
    return env | dict(extra or {})


class ServerProcess:
    """A gateway in a process of its own, with its files below `home` and its output in `log_path`."""

    def __init__(
        self,
        module: str,
        home: Path,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        directory: Path | None = None,
        python: str = sys.executable,
        port: int | None = None,
    ) -> None:
        """Start `python -m module --host 127.0.0.1 --port <free> *options` and wait until it answers.

        directory: where it runs, and so whose source; None: this one. python: its interpreter.
        port: None: a free one.
        Raises AssertionError, with the log, when it does not answer within a minute.
        """
        self.home = home
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = HttpClient(self.url)
        self.log_path = home / "process.log"
        home.mkdir(parents=True, exist_ok=True)
        command = [python, "-m", module, "--host", "127.0.0.1", "--port", str(self.port), *options]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=clean_environment(home, env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_it_answers(60.0)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """All processes below the server now: Triton, its model processes."""
        if self._process.poll() is not None:
            return []
        return psutil.Process(self.pid).children(recursive=True)

    def child(self, name: str) -> psutil.Process:
        """The one child whose program has `name` in its file name."""
        matches = [p for p in self.children() if name in os.path.basename((_command_line(p) or [""])[0])]
        assert len(matches) == 1, f"expected one process {name}, found {matches} below {self.pid}"
        return matches[0]

    def shared_memory(self) -> list[str]:
        """Shared memory files that belong to this server's Triton."""
        return sorted(p.name for p in SHARED_MEMORY.glob(f"wanstream_*_{self.pid}_*"))

    def stop(self, signal_number: int | None = signal.SIGINT, within_s: float = 10.0) -> int:
        """End the server; its exit code. Asserts that nothing of it is left after `within_s`.

        signal_number: how it is asked; None: it was asked before.
        """
        children = self.children()
        deadline = time.monotonic() + within_s
        if signal_number is not None:
            self._process.send_signal(signal_number)
        try:
            code = self._process.wait(within_s)
            while (left := self._left(children)) and time.monotonic() < deadline:
                time.sleep(0.05)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running {within_s} s after {signal_number!r}:\n{self.log[-6000:]}"
            ) from None
        finally:
            self.kill()
        assert not left, f"left behind after {within_s} s: {left}\n{self.log[-6000:]}"
        return code

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the server and its children at once, for a test that is over anyway."""
        doomed = self.children()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(5)
        for process in doomed:
            if runs(process):
                process.kill()

    def _left(self, children: Sequence[psutil.Process]) -> list[str]:
        alive = [f"process {p.pid}" for p in children if runs(p)]
        return alive + [f"/dev/shm/{name}" for name in self.shared_memory()] + self._open_port()

    def _open_port(self) -> list[str]:
        with socket.socket() as s:
            return [f"port {self.port}"] if s.connect_ex(("127.0.0.1", self.port)) == 0 else []

    def _wait_until_it_answers(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (
                f"ended with code {self._process.returncode}:\n{self.log[-6000:]}"
            )
            try:
                if self.client.request("GET", "/health", timeout_s=2).status == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"no answer from {self.url} within {within_s} s:\n{self.log[-6000:]}")


def runs(process: psutil.Process) -> bool:
    """Whether a process is alive; one that only waits to be reaped is not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
