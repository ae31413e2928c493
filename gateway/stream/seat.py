"""The driver's seat of a stream: whose parameters are applied when several people may control it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from gateway.errors import ApiError, Problem
from gateway.http.validation import quoted
from gateway.stream.parts import Control, Role

Drivers = Literal["one", "many"]

COMMANDS: Final = frozenset({"take_control", "hand_over"})


class Seat:
    """Who drives. Controls of the role `driver` always may: they come from whoever holds the token.

    drivers: "one": of the controllers only the one in the seat. "many": all of them.
    """

    def __init__(self, drivers: Drivers, controls: Callable[[], Sequence[Control]]) -> None:
        """controls(): everybody who is there."""
        self.drivers = drivers
        self._controls = controls
        self._driver: Control | None = None

    @property
    def driver(self) -> str | None:
        """Session id of whoever is in the seat."""
        return None if self._driver is None else self._driver.id

    def role_of(self, control: Control) -> Role:
        return "driver" if control is self._driver else control.role

    def admits(self, control: Control | None) -> bool:
        """Whether what `control` sends is applied. None: it came over REST."""
        if control is None or control.role == "driver" or control is self._driver:
            return True
        return self.drivers == "many" and control.role == "controller"

    def join(self, control: Control) -> None:
        """`control` has come: it drives when nobody does, of which the others are told."""
        if self._driver is None and control.role == "controller":
            self._driver = control
            self._tell_all_but(control)

    def ask(self, control: Control) -> None:
        """`control` wants to drive: it does when the seat is empty, otherwise the driver is asked."""
        if self._driver is None:
            self._seat(control)
        elif self._driver is not control:
            request = {"type": "control_requested", "sessionId": control.id, "label": control.label}
            self._driver.notify(request)

    def leave(self, control: Control) -> None:
        """`control` gives the seat back, or has gone."""
        if self._driver is control:
            self._seat(None)

    def command(self, commands: Mapping[str, Any], control: Control) -> list[Problem]:
        """Do what a message says about the seat; what was wrong with it."""
        if control.role == "viewer":
            return [self.refusal(control)]
        wish = commands.get("take_control")
        if wish:
            self.ask(control)
        elif wish is not None:
            self.leave(control)
        heir = commands.get("hand_over")
        if heir is None:
            return []
        if control is not self._driver:
            return [self.refusal(control)]
        try:
            self.give(heir)
        except ApiError as error:
            return [Problem(loc=["hand_over"], msg=error.detail, type="unknown_session")]
        return []

    def give(self, session_id: str | None) -> None:
        """Put somebody in the seat, or nobody. Raises ApiError 404: this is no controller of the stream."""
        if session_id is None:
            self._seat(None)
            return
        heir = next((c for c in self._controls() if c.id == session_id and c.role == "controller"), None)
        if heir is None:
            raise ApiError(404, f"No controller '{quoted(session_id, 64)}' is connected to this stream")
        self._seat(heir)

    def refusal(self, control: Control) -> Problem:
        """Why nothing was applied."""
        text = (
            "You only watch this stream. Join it with the role 'controller' to ask for control."
            if control.role == "viewer"
            else "Somebody else drives this stream. Send take_control: true to ask for control."
        )
        return Problem(loc=[], msg=text, type="not_driver")

    def _seat(self, control: Control | None) -> None:
        if control is not self._driver:
            self._driver = control
            self._tell_all_but(None)

    def _tell_all_but(self, knows: Control | None) -> None:
        for control in self._controls():
            if control is not knows:
                control.notify({"type": "driver_changed", "driver": self.driver})
