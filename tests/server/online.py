"""Stand-ins for the services on the internet that cases ask for: TURN credentials and the model hub."""

import json
from typing import Any

from gateway.files.models.artifacts import ARTIFACTS, UPSTREAM
from tests.hub_double import HubDouble
from tests.local_http import Reply, Request
from tests.server.cases import Case

_CREDENTIALS = "/credentials"


class Online(HubDouble):
    """Answers as the preconditions `turn` and `hub` of one case say; without repositories: 401."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._wanted: dict[str, Any] = dict(case.preconditions())
        if self._wanted.get("hub") == "slow":
            self.slow = True
            self.add(ARTIFACTS["longlive"], UPSTREAM)

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
        if request.path != _CREDENTIALS:
            return await super().answer(request)
        turn = self._wanted["turn"]
        return Reply(turn["status"], json.dumps(turn["json"]).encode(), {"Content-Type": "application/json"})

    def assert_asked(self, token: str | None) -> None:
        """Asserts that the service was asked that the case is about, with the token if there is one."""
        if "hub" in self._wanted:
            assert self.requests, "the hub was not asked"
        if "turn" in self._wanted:
            given = [r.headers.get("authorization") for r in self.requests if r.path == _CREDENTIALS]
            assert given, "the credential service was not asked"
            assert set(given) == {f"Bearer {token}"}
