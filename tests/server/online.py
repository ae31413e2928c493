"""Stand-ins for the services on the internet that cases ask for: TURN credentials and the model hub."""

import asyncio
import json
from typing import Any

from tests.local_http import LocalHttp, Reply, Request
from tests.server.cases import Case

_CREDENTIALS = "/credentials"


class Online(LocalHttp):
    """Answers as the preconditions `turn` and `hub` of one case say."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._wanted: dict[str, Any] = dict(case.preconditions())

    @property
    def env(self) -> dict[str, str]:
        """Settings that lead a server here; empty when the case needs none of the services."""
        env = {}
        if "turn" in self._wanted:
            env["WANSTREAM_TURN_CREDENTIALS_URL"] = self.url + _CREDENTIALS
        if "hub" in self._wanted:
            env["HF_ENDPOINT"] = self.url
        return env

    async def answer(self, request: Request) -> Reply:
        if request.path == _CREDENTIALS:
            turn = self._wanted["turn"]
            return _json(turn["status"], turn["json"])
        if self._wanted.get("hub") == "401":
            return _json(401, {"error": "Invalid credentials in Authorization header"})
        await asyncio.sleep(30)  # slow: longer than any case looks
        return Reply(504)

    def assert_asked(self, token: str | None) -> None:
        """Asserts that the credential service was asked, with the token, if there is one."""
        if "turn" in self._wanted:
            given = [r.headers.get("authorization") for r in self.requests if r.path == _CREDENTIALS]
            assert given, "the credential service was not asked"
            assert set(given) == {f"Bearer {token}"}


def _json(status: int, value: Any) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})
