"""Where a publication goes to."""

from dataclasses import dataclass, field
from typing import Final, Literal

import httpx

Codec = Literal["H264", "VP8"]

_ADVICE: Final = (
    "must be the http or https address of a WHIP endpoint, such as https://sfu.example.org/studio/whip, "
    "without user and password"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A WHIP endpoint, and what it is sent."""

    url: str = field(repr=False)  # its path or query may be what opens it
    token: str | None = field(default=None, repr=False)
    codec: Codec = "H264"

    @property
    def server(self) -> str:
        """The part of the URL that anybody may see."""
        url = httpx.URL(self.url)
        return f"{url.scheme}://{url.netloc.decode()}"


def check_url(text: str) -> None:
    """Raises ValueError, with the end of a sentence about a URL, for one that cannot be published to."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(_ADVICE) from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise ValueError(_ADVICE)


def check_token(text: str) -> None:
    """Raises ValueError, with the end of a sentence about a token, for one that no header can hold."""
    if not (text.isascii() and text.isprintable() and text.strip() == text != ""):
        raise ValueError("must be printable ASCII, without blanks around it")
