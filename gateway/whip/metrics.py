"""What Prometheus is told of publishers."""

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.whip.publishing import Publishers


class PublisherCollector(Collector):
    """Counts them at each scrape."""

    def __init__(self, publishers: Publishers) -> None:
        self._publishers = publishers

    def collect(self) -> Iterable[Metric]:
        text = "Programs that send a stream its video"
        publishers = GaugeMetricFamily("wanstream_publishers", text, labels=["protocol"])
        publishers.add_metric(["whip"], len(self._publishers))
        yield publishers
