"""ICE candidates of peers: as text, and which of them are tried."""

import asyncio
import ipaddress
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from aiortc import RTCIceCandidate, RTCPeerConnection
from aiortc.exceptions import InvalidAccessError, InvalidStateError
from aiortc.sdp import candidate_from_sdp

from gateway.errors import ApiError
from gateway.http.validation import quoted

logger = logging.getLogger(__name__)

MAX_CANDIDATES: Final = 64  # of a session: each is paired with every local address, and each pair is checked
END_OF_CANDIDATES: Final = ""
_MAX_ENTRIES: Final = 256  # of one request, with those that are of no use
_MDNS_NAME: Final = ".local"


class CandidateFilter:
    """Chooses the ICE candidates of one session that are tried: usable, different, and not too many.

    Every one of them makes us send checks to an address that the peer chose, and aioice's work grows with the
    square of their number.
    """

    def __init__(self, mids: Sequence[str], bundled: Iterable[str] = ()) -> None:
        """mids: of the offer's sections, in order. bundled: those that use another section's transport."""
        self._mids = list(mids)
        self._own_transport = set(mids) - set(bundled)
        self._seen: set[tuple[str, str, int]] = set()
        self.has_names = False  # mDNS names are among the chosen ones

    @property
    def has_addresses(self) -> bool:
        """Whether the peer may be reached at all; else it has to reach us."""
        return bool(self._seen) and not self.has_names

    def choose(self, entries: Sequence[Mapping[str, Any]]) -> tuple[list[RTCIceCandidate | None], int]:
        """The candidates to try, None for their end, and how many were too many.

        entries: `{candidate, sdpMid, sdpMLineIndex}`. Raises ApiError 400 for unreadable ones.
        """
        if len(entries) > _MAX_ENTRIES:
            raise too_many_candidates(len(entries))
        chosen: list[RTCIceCandidate | None] = []
        left_out = 0
        for candidate in [parse_candidate(entry) for entry in entries]:
            if candidate is None:
                chosen.append(None)
                continue
            candidate.sdpMid, candidate.sdpMLineIndex = self._mid_of(candidate), None
            key = (candidate.sdpMid or "", candidate.ip.lower(), candidate.port)
            if not self._is_usable(candidate) or key in self._seen:
                continue
            if len(self._seen) >= MAX_CANDIDATES:
                left_out += 1
                continue
            self._seen.add(key)
            self.has_names = self.has_names or is_name(candidate)
            chosen.append(candidate)
        return chosen, left_out

    def _mid_of(self, candidate: RTCIceCandidate) -> str | None:
        if candidate.sdpMid in self._mids:
            return candidate.sdpMid
        index = candidate.sdpMLineIndex
        return self._mids[index] if index is not None and 0 <= index < len(self._mids) else None

    def _is_usable(self, candidate: RTCIceCandidate) -> bool:
        return (
            candidate.sdpMid in self._own_transport
            and candidate.protocol.lower() == "udp"
            and candidate.component == 1  # aioice fails at every check that comes from any other
            and 0 < candidate.port < 1 << 16
            and (is_name(candidate) or _is_unicast(candidate.ip))
        )


def is_name(candidate: RTCIceCandidate) -> bool:
    """Whether an mDNS name stands for the address; looking it up takes a second when nobody answers."""
    return candidate.ip.lower().endswith(_MDNS_NAME)


def too_many_candidates(count: int) -> ApiError:
    return ApiError(
        400, f"Too many ICE candidates: a session takes at most {MAX_CANDIDATES}, {count} are left out"
    )


def _is_unicast(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:  # names an interface of the peer's machine, not of ours
            return False
        address = address.ipv4_mapped or address
    is_broadcast = isinstance(address, ipaddress.IPv4Address) and address.is_reserved
    return not (address.is_multicast or address.is_unspecified or is_broadcast)


def parse_candidate(entry: Mapping[str, Any]) -> RTCIceCandidate | None:
    """An aiortc candidate from `{candidate, sdpMid, sdpMLineIndex}`; None for end-of-candidates.

    Raises ApiError 400.
    """
    text = re.sub(r"^(a=)?candidate:", "", entry["candidate"].strip())
    if text == END_OF_CANDIDATES:
        return None
    if entry.get("sdpMid") is None and entry.get("sdpMLineIndex") is None:
        raise ApiError(400, "Invalid ICE candidate: neither sdpMid nor sdpMLineIndex is given")
    try:
        candidate = candidate_from_sdp(text)
    except Exception as error:  # the parser asserts and indexes its way through the text
        raise ApiError(400, f"Invalid ICE candidate: '{quoted(text)}' cannot be parsed") from error
    candidate.sdpMid = entry.get("sdpMid")
    candidate.sdpMLineIndex = entry.get("sdpMLineIndex")
    return candidate


async def add_remote_candidates(
    connection: RTCPeerConnection,
    candidates: Sequence[RTCIceCandidate | None],
    known: CandidateFilter,
    turn: asyncio.Lock,
    name: str,
) -> None:
    """Give a connection candidates of its peer, names last: these take a while to resolve.

    known: the filter that chose them. turn: one call at a time, in order of arrival. name: in the log.
    """
    names = [candidate for candidate in candidates if candidate is not None and is_name(candidate)]
    addresses = [candidate for candidate in candidates if candidate not in names]
    async with turn:  # after their end none is used
        for candidate in addresses:
            # When the peer can only reach us, an end would fail the connection before it has tried.
            if candidate is not None or known.has_addresses:
                await _add(connection, candidate, name)
            await asyncio.sleep(0)  # each takes aioice a moment, the streams go on in between
    await asyncio.gather(*(_add(connection, candidate, name) for candidate in names))


async def _add(connection: RTCPeerConnection, candidate: RTCIceCandidate | None, name: str) -> None:
    try:
        await connection.addIceCandidate(candidate)
    except (ValueError, OSError, InvalidStateError, InvalidAccessError) as error:
        # A name that cannot be resolved; the other side's checks reach us all the same.
        logger.debug("[%s] Candidate not used: %s", name, error)
