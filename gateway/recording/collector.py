"""Metrics of recordings (streams.md 10)."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.recording.recordings import Recordings


class RecordingCollector(Collector):
    """How many takes are written, and how many have been."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings

    def collect(self) -> Iterable[Metric]:
        totals = self._recordings.totals()
        yield GaugeMetricFamily(
            "wanstream_recording_active", "Takes that are being written", value=len(self._recordings)
        )
        yield CounterMetricFamily(
            "wanstream_recording_bytes", "Bytes of video that were written", value=totals.size_bytes
        )
        ended = CounterMetricFamily("wanstream_recordings", "Takes that have ended", labels=["state"])
        ended.add_metric(["done"], totals.done)
        ended.add_metric(["cut"], totals.cut)
        yield ended
