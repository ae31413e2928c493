"""What Prometheus is told of who sends streams their video, and who sees them."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.stream.stream import VIEWER_KINDS
from gateway.stream.streams import Streams
from gateway.whip.publishing import Publishers

_PUBLISHERS: Final = "Programs that send a stream its video"
_VIEWERS: Final = "Who sees a stream, beside the peer that made it"


class PartsCollector(Collector):
    """Counts them at each scrape."""

    def __init__(self, streams: Streams, publishers: Publishers) -> None:
        self._streams = streams
        self._publishers = publishers

    def collect(self) -> Iterable[Metric]:
        publishers = GaugeMetricFamily("wanstream_publishers", _PUBLISHERS, labels=["protocol"])
        publishers.add_metric(["whip"], len(self._publishers))
        yield publishers
        sinks = (sink.info for stream in self._streams for sink in stream.sinks)
        seen = Counter(info["kind"] for info in sinks if not info.get("owner"))
        viewers = GaugeMetricFamily("wanstream_viewers", _VIEWERS, labels=["protocol"])
        for kind in sorted(VIEWER_KINDS):
            viewers.add_metric([kind], seen[kind])
        yield viewers
