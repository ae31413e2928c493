"""Answers to requests for consent that come late."""

import asyncio

import pytest
from aioice import Connection, ice, stun

from gateway.webrtc.aiortc_patches.consent import install_patient_consent


class LateAnswers(asyncio.DatagramProtocol):
    """Answers a STUN request when it comes for the second time; `never`: not even then."""

    def __init__(self, never: bool) -> None:
        self._left = 1 if not never else 1000

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request = stun.parse_message(data)
        answer = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, request.transaction_id)
        if self._left:
            self._left -= 1
        else:
            self.transport.sendto(bytes(answer), addr)


async def consent(*, never: bool) -> None:
    """Ask for consent as aioice does. Raises TransactionTimeout when the answer came too late."""
    loop = asyncio.get_running_loop()
    there, _ = await loop.create_datagram_endpoint(lambda: LateAnswers(never), local_addr=("127.0.0.1", 0))
    here, protocol = await loop.create_datagram_endpoint(
        lambda: ice.StunProtocol(Connection(ice_controlling=True)), local_addr=("127.0.0.1", 0)
    )
    request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    try:
        await protocol.request(request, there.get_extra_info("sockname"), retransmissions=0)
    finally:
        here.close()
        there.close()


async def test_an_answer_that_comes_after_aioice_would_have_given_up_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_patient_consent()
    monkeypatch.setattr(stun, "RETRY_RTO", 1.5)  # so that it may take ten seconds altogether

    await consent(never=False)


async def test_an_answer_that_never_comes_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    install_patient_consent()
    monkeypatch.setattr(stun, "RETRY_RTO", 0.01)

    with pytest.raises(stun.TransactionTimeout):
        await consent(never=True)
