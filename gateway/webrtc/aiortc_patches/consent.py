"""Patience with viewers whose machine, or ours, is busy.

A connection ends when the other side has not answered for 30 s (consent, RFC 7675). aioice asks every 5 s,
counts an answer that takes longer than 0.5 s as none, and gives up after six of these: on a machine with ten
times more work than cores, streams of both test suites were lost after three to four minutes. Here an answer
may take 3.5 s, and four that are missing end the connection, after 30 to 38 s as before.
"""

from typing import Final

from aioice import ice, stun

from gateway.webrtc.aiortc_patches.members import require_members

require_members(ice, "StunProtocol", "CONSENT_FAILURES")

_RETRANSMISSIONS: Final = 2  # answers are awaited for 0.5 + 1 + 2 s
_FAILURES: Final = 4


class _PatientProtocol(ice.StunProtocol):
    async def request(
        self,
        request: stun.Message,
        addr: tuple[str, int],
        integrity_key: bytes | None = None,
        retransmissions: int | None = None,
    ) -> tuple[stun.Message, tuple[str, int]]:
        if retransmissions == 0:  # so are only requests for consent
            retransmissions = _RETRANSMISSIONS
        return await super().request(request, addr, integrity_key, retransmissions)


def install_patient_consent() -> None:
    """Make all connections patient. Call before any session."""
    ice.StunProtocol = _PatientProtocol  # type: ignore[misc]
    ice.CONSENT_FAILURES = _FAILURES
