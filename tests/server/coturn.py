"""A real TURN server, coturn, whose credentials expire as those of public services do."""

import base64
import hmac
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.processes import free_port

SECRET = "shared-secret-of-the-tests"
_SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "serve-turn.sh"


class TurnServer:
    """coturn on the loopback interface, with its files in `directory` and its output in `log`."""

    def __init__(self, directory: Path) -> None:
        """Start it and wait until it accepts connections. AssertionError, with the log, after 10 s."""
        if shutil.which("turnserver") is None:
            pytest.fail("coturn is not installed. Run: scripts/setup.sh test")
        self.port = free_port()
        self._log_path = directory / "turnserver.log"
        # As the compose file starts it, but for addresses: those of this machine alone.
        command = ["sh", str(_SCRIPT), "--verbose", "--new-log-timestamp", "--allow-loopback-peers"]
        command += ["--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--relay-threads=1"]
        command += [f"--pidfile={directory / 'pid'}", f"--userdb={directory / 'users'}"]
        env = os.environ | {"TURN_SECRET": SECRET, "TURN_PORT": str(self.port), "TMPDIR": str(directory)}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
            )
        try:
            self._wait_until_it_listens(10.0)
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def ice_server(
        self, transport: str = "udp", *, name: str = "viewer", valid_s: int = 3600
    ) -> dict[str, Any]:
        """An ICE server entry whose credentials this server accepts for `valid_s` seconds.

        The user name is the time of expiry and a name, the password its HMAC
        (https://datatracker.ietf.org/doc/html/draft-uberti-behave-turn-rest-00).
        """
        username = f"{int(time.time()) + valid_s}:{name}"
        digest = hmac.digest(SECRET.encode(), username.encode(), "sha1")
        return {
            "urls": [f"turn:127.0.0.1:{self.port}?transport={transport}"],
            "username": username,
            "credential": base64.b64encode(digest).decode(),
        }

    def stop(self) -> None:
        """End it. Idempotent."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def _wait_until_it_listens(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"coturn ended: {self.log[-3000:]}"
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"coturn does not listen: {self.log[-3000:]}")
