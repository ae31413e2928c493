"""Prometheus metrics of the gateway, computed when they are scraped."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.pipelines.state import Pipelines, State
from gateway.stream.streams import Streams
from gateway.webrtc.sessions import Sessions

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
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

    def chunk_done(self, pipeline: str, seconds: float) -> None:
        self._chunks.labels(pipeline).observe(seconds)

    def chunk_failed(self, pipeline: str) -> None:
        self._failed.labels(pipeline).inc()

    def add(self, collector: Collector) -> None:
        """Read `collector`, too, at each scrape."""
        self._registry.register(collector)

    def watch(self, pipelines: Pipelines, streams: Streams, sessions: Sessions) -> None:
        """Read these services at each scrape. Call once."""
        self._registry.register(_ServiceCollector(pipelines, streams, sessions))
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
