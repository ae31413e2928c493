"""Which gateway of a fleet a session or stream belongs to: its id begins with a mark of the owner's address.

An id stays a UUID, and tells an address to nobody: the mark is compared with those of the gateways that the
operator has named, so a made-up id leads nowhere else.
"""

import asyncio
import hashlib
import ipaddress
import logging
import re
import socket
import time
import uuid
from collections.abc import Sequence
from typing import Final

logger = logging.getLogger(__name__)

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEPT_S: Final = 2.0  # what a name server has answered: gateways come and go


class Owners:
    """The gateways of a fleet, this one included."""

    def __init__(self, own: str | None, peers: Sequence[str]) -> None:
        """own: this gateway's HOST:PORT as the others see it; None: it is alone.

        peers: all gateways, HOST:PORT each; a name stands for all of its addresses.
        """
        self._own = None if own is None else _mark(own)
        self._peers = peers
        self._found: dict[str, str] = {}  # addresses by mark
        self._until = 0.0
        self._asking = asyncio.Lock()

    def new_id(self) -> str:
        """An id for something of this gateway."""
        text = str(uuid.uuid4())
        return text if self._own is None else self._own + text[len(self._own) :]

    async def other(self, some_id: str) -> str | None:
        """HOST:PORT of another gateway that an id belongs to; None: it is ours, or nobody's."""
        mark = some_id[:8]
        if self._own in (None, mark) or not _ID.fullmatch(some_id):
            return None
        if mark not in self._found:
            await self._look_up()
        return self._found.get(mark)

    async def _look_up(self) -> None:
        async with self._asking:
            if time.monotonic() < self._until:
                return
            found = await asyncio.gather(*(_addresses(peer) for peer in self._peers))
            self._found = {_mark(address): address for addresses in found for address in addresses}
            self._until = time.monotonic() + _KEPT_S


def _mark(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:8]


async def _addresses(peer: str) -> list[str]:
    """A gateway's HOST:PORT, or that of each address of a name."""
    host, _, port = peer.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        return [peer]
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        logger.warning("The gateways of %s cannot be found: %s", peer, error)
        return []
    hosts = dict.fromkeys(str(address[0]) for *_, address in found)
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
