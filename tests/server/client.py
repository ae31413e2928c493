"""A plain HTTP client for tests: paths and bodies go out exactly as given, malformed ones too."""

import asyncio
import contextlib
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

UNSET: Any = object()


@dataclass(frozen=True)
class Answer:
    """A complete HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.body)


class HttpClient:
    """Requests to one server, a connection of its own for each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._address = urlsplit(url).netloc

    def request(
        self,
        method: str,
        path: str,
        *,
        json_body: Any = UNSET,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Answer:
        """Send one request; `path` is not encoded again. An answer given before all was read is heard."""
        sent_headers = dict(headers or {})
        if json_body is not UNSET:
            body = json.dumps(json_body).encode()
            sent_headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(self._address, timeout=timeout_s)
        try:
            own_host = any(name.lower() == "host" for name in sent_headers)
            connection.putrequest(method, path, skip_host=own_host, skip_accept_encoding=True)
            for name, value in sent_headers.items():
                connection.putheader(name, value)
            length_given = {name.lower() for name in sent_headers} & {"content-length", "transfer-encoding"}
            if not length_given and (body is not None or method in ("POST", "PUT", "PATCH")):
                connection.putheader("Content-Length", str(len(body or b"")))
            connection.endheaders()
            if body:
                self._send(connection, body)
            response = connection.getresponse()
            answered = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, answered, response.read())
        finally:
            connection.close()

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """`request` without blocking the event loop."""
        return await asyncio.to_thread(self.request, method, path, **options)

    @staticmethod
    def _send(connection: http.client.HTTPConnection, body: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused early: read the answer
            connection.send(body)
