"""What the three ways of passing pictures between programs have in common.

Their packages are optional: nothing but the functions of `ndi`, `spout` and `syphon` imports them, and one
thread opens, uses and closes whatever comes from there.
"""

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from gateway.serving.interface import Images
from streaming.errors import WanstreamError

RETRY_S: Final = 5.0  # after a failure, or when a sender has gone


class LocalVideoError(WanstreamError):
    """Pictures cannot be had or passed on now."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a way exists here; why not, and what to do about it."""

    available: bool
    reason: str | None = None
    install_hint: str | None = None

    @property
    def text(self) -> str:
        """Why not, and the advice, as one sentence."""
        return f"{self.reason}. {self.install_hint}" if self.install_hint else f"{self.reason}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Sender(Protocol):
    """Passes pictures on under a name."""

    def send(self, picture: Images) -> None:
        """Show uint8 [H, W, 3] RGB, of whatever size. Raises LocalVideoError, or what the library raises."""

    def close(self) -> None: ...


class Receiver(Protocol):
    """Takes pictures from another program."""

    def receive(self) -> Images | None:
        """The newest picture as uint8 [H, W, 3] RGB, None when there is no new one; returns at once.

        Raises LocalVideoError when the other program has gone.
        """

    def close(self) -> None: ...


class Library(Protocol):
    """A module of this package. All but `available` blocks, and is to be called in one thread."""

    def available(self, platform: str = ...) -> Availability: ...

    def senders(self, timeout_s: float) -> list[str]:
        """Names from which pictures can be had."""

    def open_sender(self, name: str) -> Sender: ...

    def open_receiver(self, name: str) -> Receiver:
        """name: empty: any sender. Raises LocalVideoError when there is none of that name."""


def extra_available(package: str, extra: str, product: str) -> Availability:
    """Whether an optional package is installed, which is looked up and not imported."""
    if importlib.util.find_spec(package) is not None:
        return Availability(True)
    hint = f"Install it with: pip install 'wanstream[{extra}]'"
    return Availability(False, f"{product} needs the optional package {package}", hint)
