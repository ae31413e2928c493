"""What Prometheus is told of publications."""

from collections import Counter
from collections.abc import Iterable
from typing import get_args

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.publications.publication import State
from gateway.publications.publications import Publications


class PublicationCollector(Collector):
    """Counts them at each scrape."""

    def __init__(self, publications: Publications) -> None:
        self._publications = publications

    def collect(self) -> Iterable[Metric]:
        counts = Counter(publication.state for publication in self._publications)
        text = "Streams that are sent to media servers, by what becomes of that"
        family = GaugeMetricFamily("wanstream_publications", text, labels=["state"])
        for state in get_args(State):
            family.add_metric([state], counts[state])
        yield family
