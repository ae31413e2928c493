"""Prometheus metrics of the gateway, computed when they are scraped."""

from collections import Counter as Counts
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.pipelines.state import Pipelines, State
from gateway.stream.encoding.codecs import CODECS
from gateway.stream.encoding.encoders import TIERS
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams
from gateway.webrtc.sessions import Sessions

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_PICTURE_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROUND_TRIP_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_INPUT_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
_ENCODE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
_CHUNK_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What workers report, and what is read from the services at each scrape."""

    def __init__(self, version: str = "", revision: str = "") -> None:
        """version, revision: of the program."""
        self._registry = CollectorRegistry()
        build = Info("wanstream_build", "Which program this is", registry=self._registry)
        build.info({"version": version, "revision": revision})
        self._chunks = Histogram(
            "wanstream_chunk_seconds",
            "Time from a chunk's request to its last picture",
            ["pipeline"],
            buckets=_CHUNK_SECONDS,
            registry=self._registry,
        )
        self._failed = Counter(
            "wanstream_failed_chunks", "Chunks that failed", ["pipeline"], registry=self._registry
        )
        self._input = Histogram(
            "wanstream_input_to_picture_seconds",
            "Time from the arrival of a chunk's newest input picture until its first picture is shown",
            buckets=_INPUT_SECONDS,
            registry=self._registry,
        )
        self._change = Histogram(
            "wanstream_change_to_picture_seconds",
            "Time from a change of parameters until the first picture with it is shown",
            ["pipeline"],
            buckets=_INPUT_SECONDS,
            registry=self._registry,
        )
        self.encoding = EncodingMetrics(self._registry)

    def chunk_done(self, pipeline: str, seconds: float) -> None:
        self._chunks.labels(pipeline).observe(seconds)

    def chunk_failed(self, pipeline: str) -> None:
        self._failed.labels(pipeline).inc()

    def input_shown(self, seconds: float) -> None:
        self._input.observe(seconds)

    def change_shown(self, pipeline: str, seconds: float) -> None:
        self._change.labels(pipeline).observe(seconds)

    def add(self, collector: Collector) -> None:
        """Read `collector`, too, at each scrape."""
        self._registry.register(collector)

    def watch(self, pipelines: Pipelines, streams: Streams, sessions: Sessions) -> None:
        """Read these services at each scrape. Call once."""
        self._registry.register(_ServiceCollector(pipelines, streams, sessions))
        self.show_counts(
            "wanstream_ingest_frames", "Pictures that sources brought", "kind", streams.pictures_in
        )
        self.show_counts(
            "wanstream_source_lost", "Sources that could not go on", "kind", streams.sources_lost
        )
        self.show_counts("wanstream_offers_refused", "Offers that were refused", "reason", streams.refused)

    def show_counts(self, name: str, text: str, label: str, counts: Mapping[str, int]) -> None:
        """Read counts that live elsewhere at each scrape. label: what their keys are called."""
        self._registry.register(_Counts(name, text, label, counts))

    async def exposition(self, pipelines: Pipelines) -> bytes:
        """All metrics in Prometheus' text format."""
        ready = await pipelines.serving.is_ready()
        lines = GaugeMetricFamily("wanstream_triton_ready", "Whether Triton answers", value=float(ready))
        registry = CollectorRegistry()
        registry.register(_Constant(lines))
        return generate_latest(self._registry) + generate_latest(registry)


class EncodingMetrics:
    """What encoders and senders report (streams.md 10)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "wanstream_encode_seconds",
            "Time to encode a picture, for all who see it",
            ["codec"],
            buckets=_ENCODE_SECONDS,
            registry=registry,
        )
        self._key_frames = Counter(
            "wanstream_keyframes", "Key frames that were asked for", ["reason"], registry=registry
        )
        self._pli = Counter("wanstream_pli", "Requests of viewers for a key frame", registry=registry)
        self._nack = Counter(
            "wanstream_nack_packets", "Packets that viewers asked for again", registry=registry
        )
        self._dropped = Counter(
            "wanstream_viewer_dropped_packets", "Packets that were not taken in time", registry=registry
        )
        self._egress = Counter(
            "wanstream_egress_bytes", "RTP packets sent to viewers, without repeated ones", registry=registry
        )
        self._first = Histogram(
            "wanstream_first_picture_seconds",
            "Time from a viewer's offer to the first packet that it is sent",
            ["protocol"],
            buckets=_FIRST_PICTURE_SECONDS,
            registry=registry,
        )
        self._closed = Counter(
            "wanstream_viewers_closed", "Viewers that have gone", ["reason"], registry=registry
        )
        self._round_trip = Histogram(
            "wanstream_viewer_rtt_seconds",
            "Round trip to a viewer, as its reports tell",
            buckets=_ROUND_TRIP_SECONDS,
            registry=registry,
        )

    def picture_encoded(self, codec: str, seconds: float) -> None:
        self._seconds.labels(codec).observe(seconds)

    def key_frame_made(self, reason: str) -> None:
        self._key_frames.labels(reason).inc()

    def picture_lost(self) -> None:
        self._pli.inc()

    def packets_lost(self, count: int) -> None:
        self._nack.inc(count)

    def packets_dropped(self, count: int) -> None:
        self._dropped.inc(count)

    def bytes_sent(self, count: int) -> None:
        self._egress.inc(count)

    def round_trip(self, seconds: float) -> None:
        self._round_trip.observe(seconds)

    def viewer_closed(self, reason: str) -> None:
        self._closed.labels(reason).inc()

    def first_picture(self, protocol: str, seconds: float) -> None:
        self._first.labels(protocol).observe(seconds)


class _Constant(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


class _Counts(Collector):
    def __init__(self, name: str, text: str, label: str, counts: Mapping[str, int]) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for key, value in list(self._counts.items()):
            family.add_metric([key], value)
        return [family]


class _ServiceCollector(Collector):
    def __init__(self, pipelines: Pipelines, streams: Streams, sessions: Sessions) -> None:
        self._pipelines = pipelines
        self._streams = streams
        self._sessions = sessions

    def collect(self) -> Iterable[Metric]:
        state = GaugeMetricFamily("wanstream_pipeline_state", "1 for the current state", labels=["state"])
        for candidate in State:
            state.add_metric([candidate.value], float(self._pipelines.state is candidate))
        yield state
        live = list(self._sessions)
        yield GaugeMetricFamily("wanstream_sessions", "Open sessions", value=len(live))
        limit, draining = self._streams.limit, float(self._streams.draining)
        yield GaugeMetricFamily("wanstream_sessions_limit", "Streams that have room here", value=limit)
        yield GaugeMetricFamily("wanstream_draining", "1 when no new sessions are accepted", value=draining)
        loading = self._pipelines.load_seconds
        if loading is not None:
            yield GaugeMetricFamily("wanstream_load_seconds", "What the last load took", value=loading)
        fps = [peer.stream.output.fps for peer in live if peer.connected]
        yield GaugeMetricFamily("wanstream_sessions_connected", "Sessions with media", value=len(fps))
        queued = sum(len(stream.output) for stream in self._streams)
        yield GaugeMetricFamily("wanstream_queued_frames", "Pictures that wait to be shown", value=queued)
        yield _encoders(self._streams)
        # One series per session would stay in Prometheus for each viewer there ever was.
        yield GaugeMetricFamily(
            "wanstream_session_fps_lowest",
            "Pictures per second shown to the slowest connected session",
            value=min(fps, default=0.0),
        )
        yield GaugeMetricFamily(
            "wanstream_session_fps_mean",
            "Pictures per second shown to a connected session, on average",
            value=sum(fps) / len(fps) if fps else 0.0,
        )
        totals = self._streams.totals()
        for name, text, value in (
            ("wanstream_frames_in", "Frames received from peers", totals.frames_in),
            ("wanstream_frames_out", "Frames sent to peers", totals.frames_out),
            ("wanstream_frames_dropped", "Frames dropped to keep the delay low", totals.frames_dropped),
            ("wanstream_sessions_opened", "Sessions since the start", self._sessions.opened),
            ("wanstream_stream_errors", "Streams that ended with an error", totals.errors),
        ):
            yield CounterMetricFamily(name, text, value=value)


def _encoders(streams: Iterable[Stream]) -> Metric:
    """How many encoders run, by codec and tier."""
    family = GaugeMetricFamily("wanstream_encoders", "Encoders that run", labels=["codec", "tier"])
    running = Counts((each.codec, each.tier) for stream in streams for each in stream.encoders)
    for codec in CODECS:
        for tier in TIERS:
            family.add_metric([codec, tier], float(running[codec, tier]))
    return family
