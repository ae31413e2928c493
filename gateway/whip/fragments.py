"""The SDP fragments in which WHIP and WHEP clients trickle candidates (RFC 8840)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import ApiError
from gateway.webrtc.candidates import END_OF_CANDIDATES, parse_candidate


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a fragment says. mid None: of whichever section shares the connection.

    credentials: ICE user fragments and passwords. candidates: (text, mid); those that cannot be read are left
    out. ended: no more will come.
    """

    credentials: frozenset[str]
    candidates: tuple[tuple[str, str | None], ...]
    ended: bool

    def entries(self, transports: Mapping[str, str]) -> list[dict[str, Any]]:
        """The candidates as a `CandidateFilter` takes them.

        transports: as in an `Offer`; candidates of no section, or of one that it does not have, are the first
        one's.
        """
        first = next(iter(transports.values()))
        entries = [
            {"candidate": text, "sdpMid": transports.get(mid or "", first)} for text, mid in self.candidates
        ]
        return [*entries, *([{"candidate": END_OF_CANDIDATES}] if self.ended else [])]


def read_fragment(text: str) -> Fragment:
    """What is of use in a fragment, and nothing else: clients differ in what they write around it."""
    credentials: set[str] = set()
    candidates: list[tuple[str, str | None]] = []
    ended = False
    mid: str | None = None
    for line in map(str.strip, text.splitlines()):
        name, _, value = line.partition(":")
        if line.startswith("m="):
            mid = None
        elif name == "a=mid":
            mid = value
        elif name in ("a=ice-ufrag", "a=ice-pwd"):
            credentials.add(value)
        elif name == "a=candidate" and _is_readable(line):
            candidates.append((line, mid))
        elif name == "a=end-of-candidates":
            ended = True
    return Fragment(frozenset(credentials), tuple(candidates), ended)


def _is_readable(line: str) -> bool:
    try:
        return parse_candidate({"candidate": line, "sdpMid": ""}) is not None
    except ApiError:
        return False
