"""The wire-level cases of the specification, loaded from `data/api_cases.json`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CASES_FILE = Path(__file__).parent / "data" / "api_cases.json"


@dataclass(frozen=True)
class Case:
    """One case; the format is described in api.md 17."""

    id: str
    title: str
    kind: str  # "http" or "datachannel"
    setup: list[dict[str, Any]]
    steps: list[dict[str, Any]]

    def __str__(self) -> str:
        return self.id

    @property
    def env(self) -> dict[str, str]:
        """Environment that the server must be started with; empty: any server will do."""
        env: dict[str, str] = {}
        for name, value in self.preconditions():
            if name == "env":
                env |= {k: v for k, v in value.items() if v != ""}  # an empty variable counts as unset
            elif name == "max_sessions":
                env["WANSTREAM_MAX_SESSIONS"] = str(value)
        return env

    def preconditions(self) -> Iterator[tuple[str, Any]]:
        for entry in self.setup:
            yield from entry.items()


def load_cases() -> list[Case]:
    """All cases; those that need the same server and pipeline are neighbours, which saves loads."""
    document = json.loads(CASES_FILE.read_text())
    assert document["format"] == 1, f"{CASES_FILE.name}: only format 1 can be read"
    cases = [
        Case(c["id"], c["title"], c.get("kind", "http"), c.get("setup", []), c["steps"])
        for c in document["cases"]
    ]
    return sorted(cases, key=lambda case: (sorted(case.env.items()), _pipeline(case)))


def _pipeline(case: Case) -> str:
    wanted = next((value for name, value in case.preconditions() if name == "pipeline"), "")
    return wanted["id"] if isinstance(wanted, dict) else str(wanted)
