"""UDP ports of the media, and the address of a machine behind a NAT: aioice lets nobody choose them.

With a range of ports a firewall need not be open for all of those that the operating system may pick. A
machine whose public address belongs to a device that passes everything on to it (1:1 NAT, as in clouds)
cannot find that address; it has to be told, as a STUN server would tell it.
"""

import asyncio
import contextlib
import errno
import ipaddress
import random
import socket
from collections.abc import Sequence
from typing import ClassVar

from aioice import Candidate, ice, turn
from aioice.candidate import candidate_foundation, candidate_priority
from aiortc import rtcicetransport

from gateway.errors import ApiError
from gateway.webrtc.aiortc_patches.guards import GuardedConnection
from gateway.webrtc.aiortc_patches.members import require_members

require_members(ice.Connection, "get_component_candidates")
require_members(ice, "StunProtocol", "server_reflexive_candidate")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _PlacedConnection(GuardedConnection):
    """An ICE connection on chosen ports, with the addresses of a NAT among its candidates."""

    ports: ClassVar[range | None] = None
    public: ClassVar[Sequence[Address]] = ()

    async def get_component_candidates(
        self, component: int, addresses: list[str], timeout: int = 0
    ) -> list[Candidate]:
        """Those of aioice, on our ports, and the public ones. Raises ApiError 503 when no port is free."""
        ordered = self.in_order(addresses)
        hosts = [h for address in ordered if (h := await self._bind(component, address)) is not None]
        self._protocols += hosts
        if addresses and not hosts:
            raise ApiError(503, _no_port(self.ports), headers={"Retry-After": "5"})
        own = [host.local_candidate for host in hosts]
        # Without addresses aioice asks the TURN server alone.
        relayed = super().get_component_candidates(component, [], timeout)
        reflexive, relays = await asyncio.gather(self._ask_stun(hosts), relayed)
        return [*own, *_mapped(own, self.public), *reflexive, *relays]

    async def _bind(self, component: int, address: str) -> ice.StunProtocol | None:
        """A socket of `address` on a free port; None: there is none, or no such address any more."""
        loop = asyncio.get_running_loop()
        for port in _shuffled(self.ports):
            try:
                transport, protocol = await loop.create_datagram_endpoint(
                    lambda: ice.StunProtocol(self), local_addr=(address, port)
                )
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                return None
            bound: socket.socket = transport.get_extra_info("socket")
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, turn.UDP_SOCKET_BUFFER_SIZE)
            host, port = bound.getsockname()[:2]
            protocol.local_candidate = Candidate(
                foundation=candidate_foundation("host", "udp", host),
                component=component,
                transport="udp",
                priority=candidate_priority(component, "host"),
                host=host,
                port=port,
                type="host",
            )
            return protocol
        return None

    async def _ask_stun(self, hosts: Sequence[ice.StunProtocol]) -> list[Candidate]:
        if self.stun_server is None:
            return []
        asked = [
            asyncio.create_task(ice.server_reflexive_candidate(host, self.stun_server))
            for host in hosts
            if _is_ipv4(host.local_candidate)
        ]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), self.gathering_s)
        done = [task for task in asked if task.done() and not task.cancelled() and task.exception() is None]
        return [task.result()[0] for task in done]


def install_media_ports(ports: range | None, public: Sequence[Address]) -> None:
    """Let all connections use `ports`, and advertise `public`. Call after `install_guards`.

    ports: None: those that the operating system picks.
    """
    if ports is None and not public:
        return
    _PlacedConnection.ports, _PlacedConnection.public = ports, tuple(public)
    rtcicetransport.Connection = _PlacedConnection  # type: ignore[attr-defined]


def _shuffled(ports: range | None) -> Sequence[int]:
    """In an order of their own for each connection, so that a port which was just let go of rests."""
    return [0] if ports is None else random.sample(ports, len(ports))


def _no_port(ports: range | None) -> str:
    if ports is None:
        return "No UDP port could be opened for the media; see the server's log"
    return (
        f"All UDP ports for media ({ports[0]}-{ports[-1]}) are in use: try again later. The server's "
        "operator can widen WANSTREAM_MEDIA_PORTS: each viewer takes one per address of the machine"
    )


def _mapped(hosts: Sequence[Candidate], public: Sequence[Address]) -> list[Candidate]:
    """What a STUN server beyond the NAT would say of the sockets that the NAT passes on to."""
    found = []
    for address in public:
        alike = [host for host in hosts if ipaddress.ip_address(host.host).version == address.version]
        way_out = _source_towards(address)
        for host in [host for host in alike if host.host == way_out] or alike:
            found.append(
                Candidate(
                    foundation=candidate_foundation("srflx", "udp", host.host),
                    component=host.component,
                    transport="udp",
                    priority=candidate_priority(host.component, "srflx"),
                    host=str(address),
                    port=host.port,
                    type="srflx",
                    related_address=host.host,
                    related_port=host.port,
                )
            )
    return found


def _source_towards(address: Address) -> str | None:
    """Our address on the way to another one; None: there is no way."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try:
            s.connect((str(address), 9))  # sends nothing
        except OSError:
            return None
        return str(s.getsockname()[0])


def _is_ipv4(candidate: Candidate) -> bool:
    return ipaddress.ip_address(candidate.host).version == 4
