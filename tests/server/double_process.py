"""A gateway process whose GPU pipelines are served by the double, and the handle that tests steer it with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.server.processes import ServerProcess

CONTROL = "/_double"


class DoubleProcess(ServerProcess):
    """`tests.server.serve_double` in a process of its own.

    triton: serve `passthrough` through a real embedded Triton; without it the double serves every pipeline.
    connect_timeout_s: when a peer that does not connect is dropped; None: the product's default.
    """

    def __init__(
        self,
        home: Path,
        env: Mapping[str, str] | None = None,
        *,
        triton: bool = False,
        connect_timeout_s: float | None = None,
        options: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        options = [*options, *(["--triton"] if triton else [])]
        if connect_timeout_s is not None:
            options += ["--connect-timeout", str(connect_timeout_s)]
        super().__init__("tests.server.serve_double", home, env, options, port=port)

    @property
    def assets(self) -> Path:
        return self.home / "assets"

    @property
    def loras(self) -> Path:
        return self.home / "models" / "lora"

    def set_faults(self, **faults: Any) -> None:
        """Change fields of `double.Faults`; the others stay."""
        self._control("POST", "/faults", faults)

    def reset_faults(self) -> None:
        """Back to a healthy serving side."""
        self._control("DELETE", "/faults")

    def lose(self, text: str) -> None:
        """Let the loaded pipeline die under its users."""
        self._control("POST", "/lose", {"text": text})

    def chunks(self, session: int = -1) -> list[dict[str, Any]]:
        """`ChunkRecord`s of a serving session, of the newest by default."""
        sessions = self.sessions()
        return list(sessions[session]["chunks"]) if sessions else []

    def forget_chunks(self) -> None:
        """Keep no record of the chunks so far, which would grow for as long as the server runs."""
        self._control("DELETE", "/chunks")

    def prompts(self) -> list[str]:
        """Texts under which the newest chunk was made; none before the first."""
        return [prompt["text"] for chunk in self.chunks()[-1:] for prompt in chunk["active_prompts"]]

    def tasks(self) -> list[str]:
        """What the tasks of the server's event loop run, but for its HTTP connections."""
        return list(self._control("GET", "/tasks"))

    def sessions(self) -> list[dict[str, Any]]:
        """All serving sessions since the start: `chunks`, `closed` and `given_up`, a number of chunks."""
        return list(self._control("GET", "/sessions"))

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.client.request(method, CONTROL + path, **({} if body is None else {"json_body": body}))
        assert answer.status == 200, f"{method} {CONTROL}{path}: {answer.status} {answer.text}"
        return answer.json()
