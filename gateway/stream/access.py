"""The tokens of a private stream, and what each of them opens (streams.md 1.7)."""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

Grant = Literal["view", "drive", "publish", "all"]

_OPENS: Final[dict[Grant, frozenset[Grant]]] = {
    "view": frozenset({"view"}),
    "drive": frozenset({"view", "drive"}),
    "publish": frozenset({"publish"}),
}


def _new_token() -> str:
    return secrets.token_urlsafe(16)


@dataclass(frozen=True, slots=True)
class StreamTokens:
    """Made with a stream, and shown to whoever made it."""

    view: str = field(default_factory=_new_token, repr=False)
    drive: str = field(default_factory=_new_token, repr=False)
    publish: str = field(default_factory=_new_token, repr=False)

    def grants(self, given: Iterable[str]) -> frozenset[Grant]:
        """What these tokens open."""
        known: list[tuple[Grant, str]] = [
            ("view", self.view),
            ("drive", self.drive),
            ("publish", self.publish),
        ]
        opened = (_OPENS[grant] for grant, token in known if any(equal(each, token) for each in given))
        return frozenset().union(*opened)

    def as_dict(self) -> dict[str, str]:
        return {"view": self.view, "drive": self.drive, "publish": self.publish}


def equal(given: str, token: str) -> bool:
    """Whether two secrets are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), token.encode())
