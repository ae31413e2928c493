"""Metrics of streams, of who sees them and of who controls them. No label grows with their number."""

from collections import Counter
from collections.abc import Iterable
from typing import get_args

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.stream.parts import Role
from gateway.stream.stream import VIEWER_KINDS, Phase
from gateway.stream.streams import Streams


class StreamsCollector(Collector):
    """Counts the table at each scrape."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def collect(self) -> Iterable[Metric]:
        streams = list(self._streams)
        phases: Counter[str] = Counter(stream.phase for stream in streams)
        yield _gauge("wanstream_streams", "Streams by what they do", "state", get_args(Phase), phases)
        sinks = (sink.info for stream in streams for sink in stream.sinks)
        viewers = Counter(info["kind"] for info in sinks if not info.get("owner"))
        text = "Who watches a stream that somebody else has made"
        yield _gauge("wanstream_viewers", text, "protocol", sorted(VIEWER_KINDS), viewers)
        roles: Counter[str] = Counter(s.seat.role_of(control) for s in streams for control in s.controls)
        yield _gauge("wanstream_controls", "Who is told of a stream", "role", get_args(Role), roles)


def _gauge(name: str, text: str, label: str, values: Iterable[str], counts: Counter[str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value], float(counts[value]))
    return family
