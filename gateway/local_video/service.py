"""Outputs to other programs, and sources from them, of all streams."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from gateway.errors import ApiError, Problem
from gateway.http.validation import quoted
from gateway.local_video import ndi, spout, syphon
from gateway.local_video.interface import Availability, Library
from gateway.local_video.sink import LocalSink
from gateway.local_video.source import LocalSource
from gateway.stream.parts import parameter_error
from gateway.stream.stream import Stream

logger = logging.getLogger(__name__)

LIBRARIES: Final[dict[str, Library]] = {"spout": spout, "ndi": ndi, "syphon": syphon}
_NEEDS_CONSENT: Final = Availability(
    False,
    "NDI is switched off here, because it asks for no token and listens on all addresses",
    "Set WANSTREAM_NDI=on to use it",
)


class LocalVideo:
    """Spout, NDI and Syphon, where they exist.

    ndi_allowed: NDI shows pictures to whoever reaches the machine. libraries: for tests.
    """

    def __init__(
        self,
        streams: Iterable[Stream],
        *,
        ndi_allowed: bool,
        libraries: Mapping[str, Library] = LIBRARIES,
    ) -> None:
        self._streams = streams
        self._ndi_allowed = ndi_allowed
        self._libraries = libraries
        self._changing = asyncio.Lock()  # names are given away one after another
        self._tasks: set[asyncio.Task[None]] = set()

    def availability(self, kind: str) -> Availability:
        """Whether `kind` can be used here. Raises ApiError 404 for a kind that there is not."""
        if kind not in self._libraries:
            known = ", ".join(self._libraries)
            raise ApiError(404, f"There is no output or source of kind '{quoted(kind, 40)}', only {known}")
        found = self._libraries[kind].available()
        return _NEEDS_CONSENT if found.available and kind == "ndi" and not self._ndi_allowed else found

    async def senders(self, kind: str) -> list[str]:
        """Names from which pictures can be had now. Raises ApiError 404, 400."""
        self._require(kind)
        return await asyncio.to_thread(self._libraries[kind].senders, 1.0)

    async def set_sink(
        self, stream: Stream, kind: str, enabled: bool, name: str | None = None
    ) -> LocalSink | None:
        """Show a stream to other programs, under a name, or no more; the sink, if there is one now.

        name: None: the usual one. A name that another stream uses gets a number. Raises ApiError 404, 400.
        """
        found = self.availability(kind)
        if enabled and not found.available:
            raise ApiError(400, found.text)
        async with self._changing:
            current = next((s for s in stream.sinks if isinstance(s, LocalSink) and s.kind == kind), None)
            wanted = self._free_name(stream, kind, _usual_name(kind, stream) if name is None else name)
            if current is not None and enabled and current.name == wanted:
                return current
            if current is not None:
                stream.remove_sink(current)
                await current.close()
            if not enabled or stream.closed:
                return None
            tell = partial(_tell, stream, "output_sinks", kind)
            sink = LocalSink(kind, wanted, self._libraries[kind].open_sender, tell)
            stream.add_sink(sink)
            sink.start(stream.output)
            stream.begin()
            logger.info("[%s] Shown by %s as '%s'", stream.id, kind, quoted(wanted, 80))
            return sink

    async def set_source(self, stream: Stream, kind: str, enabled: bool, name: str = "") -> None:
        """Take a stream's input from another program, or no more.

        name: empty: any. Raises ApiError 404, 400.
        """
        current = stream.source
        if not enabled:
            if isinstance(current, LocalSource) and current.kind == kind:
                current.stop()
                stream.drop_source(current)
            return
        self._require(kind)
        if isinstance(current, LocalSource) and (current.kind, current.name) == (kind, name):
            return
        tell = partial(_source_lost, stream, kind)
        stream.take_source(LocalSource(kind, name, self._libraries[kind].open_receiver, tell))
        if not stream.state.input_mode_chosen:
            await stream.update({"input_mode": "video"})

    async def attach(self, stream: Stream, wish: Mapping[str, Any]) -> None:
        """`set_source` for a request's `{"kind", "name"}`."""
        await self.set_source(stream, str(wish["kind"]), True, str(wish.get("name") or ""))

    def wish(self, stream: Stream, wishes: Mapping[str, Any]) -> list[Problem]:
        """Do what live parameters ask for, in their order; returns what cannot be had here.

        wishes: valid values of `spout_sender`, `spout_receiver`, `output_sinks` and `input_source`.
        """
        problems = []
        for key, kind, change, enabled in self._changes(stream, wishes):
            found = self.availability(kind)
            if enabled and not found.available:
                problems.append(Problem(type="unavailable", loc=[key], msg=found.text, input=None))
            else:
                self._spawn(change)
        return problems

    async def close(self) -> None:
        """Wait for changes that are being made."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changes(
        self, stream: Stream, wishes: Mapping[str, Any]
    ) -> Iterable[tuple[str, str, Callable[[], Any], bool]]:
        """The parameter, the kind, what to do, and whether something is switched on."""
        sinks = {
            "spout_sender": {"spout": wishes.get("spout_sender")},
            "output_sinks": wishes.get("output_sinks"),
        }
        for key, by_kind in sinks.items():
            for kind, sink in (by_kind or {}).items():
                if sink is not None:
                    enabled, name = sink["enabled"], sink["name"]
                    yield key, kind, partial(self.set_sink, stream, kind, enabled, name), enabled
        receiver = wishes.get("spout_receiver")
        sources = {
            "spout_receiver": receiver
            and {"source_type": "spout", **receiver, "source_name": receiver["name"]}
        }
        sources["input_source"] = wishes.get("input_source")
        for key, source in sources.items():
            if source:
                kind, enabled, name = source["source_type"], source["enabled"], source["source_name"] or ""
                yield key, kind, partial(self.set_source, stream, kind, enabled, name), enabled

    def _spawn(self, change: Callable[[], Any]) -> None:
        async def run() -> None:
            try:
                await change()
            except Exception:  # task boundary: there is nobody to tell any more
                logger.exception("A local output or source could not be changed")

        task = asyncio.create_task(run(), name="local-video")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _require(self, kind: str) -> None:
        found = self.availability(kind)
        if not found.available:
            raise ApiError(400, found.text)

    def _free_name(self, stream: Stream, kind: str, name: str) -> str:
        others = (sink for other in self._streams if other is not stream for sink in other.sinks)
        taken = {sink.name for sink in others if isinstance(sink, LocalSink) and sink.kind == kind}
        numbered = (name if i == 1 else f"{name} {i}" for i in range(1, len(taken) + 2))
        return next(each for each in numbered if each not in taken)


def _usual_name(kind: str, stream: Stream) -> str:
    return "ScopeOut" if kind == "spout" else f"wanstream ({stream.id})"


def _source_lost(stream: Stream, kind: str, text: str) -> None:
    stream.sources_lost[kind] += 1
    _tell(stream, "input_source", kind, text)


def _tell(stream: Stream, key: str, kind: str, text: str) -> None:
    problem = Problem(loc=[key, kind], msg=text, type="local_video")
    stream.notify(parameter_error([problem]))
