"""A STUN server that may fall silent."""

import socket
import threading
from collections import Counter
from types import TracebackType

from aioice import stun


class SilentStun:
    """`stun:` server on the loopback interface. senders: how many requests came, by the port that sent them.

    alive: whether it answers them.
    """

    def __init__(self) -> None:
        self.alive = True
        self.senders: Counter[int] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"stun:127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "SilentStun":
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                data, address = self._socket.recvfrom(2048)
            except OSError:
                return
            self.senders[address[1]] += 1
            if self.alive:
                request = stun.parse_message(data)
                answer = stun.Message(request.message_method, stun.Class.RESPONSE, request.transaction_id)
                answer.attributes["XOR-MAPPED-ADDRESS"] = address
                self._socket.sendto(bytes(answer), address)
