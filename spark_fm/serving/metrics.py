"""Prometheus metrics of all workers together; imported in workers only.

prometheus_client keeps each worker's numbers in a file of the folder that the environment
variable ``PROMETHEUS_MULTIPROC_DIR`` names when it is imported. The supervisor sets it, and
whichever worker is asked adds up all files.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter as Counted
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from spark_fm.serving.settings import SERVING, STATUS, write_atomically

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST
_COUNTS = {
    "worker_deaths": "Workers that died and were replaced",
    "reloads": "New model versions that were taken over",
    "refused_reloads": "New model versions that were refused",
}
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_POWERS_OF_4 = tuple(4**power for power in range(11))


class Metrics:
    """The metrics of this worker, and the page with those of all."""

    def __init__(self, shared: Path) -> None:
        """Keep them in the private folder of the server."""
        own: Any = {"registry": CollectorRegistry()}  # not the page's: that one reads the files
        self.requests = Counter("spark_fm_requests", "Requests answered", ["path", "status"], **own)
        self.seconds = Histogram(
            "spark_fm_invocation_seconds", "Time from a request's head to its answer",
            buckets=_SECONDS, **own,
        )  # fmt: skip
        self.instances = Counter("spark_fm_instances", "Instances scored", **own)
        self.payload_bytes = Counter("spark_fm_payload_bytes", "Bytes of request bodies", **own)
        self.call_requests = Histogram(
            "spark_fm_batch_requests", "Requests scored in one kernel call",
            buckets=_POWERS_OF_4[:6], **own,
        )  # fmt: skip
        self.call_rows = Histogram(
            "spark_fm_batch_instances", "Instances scored in one kernel call",
            buckets=_POWERS_OF_4, **own,
        )  # fmt: skip
        self.in_flight = Gauge(
            "spark_fm_requests_in_flight", "Requests being answered",
            multiprocess_mode="livesum", **own,
        )  # fmt: skip
        self._served_model = shared / SERVING / str(os.getpid())
        self._all_workers = CollectorRegistry()
        MultiProcessCollector(self._all_workers)
        self._all_workers.register(_SupervisorCollector(shared))

    def page(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        return generate_latest(self._all_workers)

    def serves(self, digest: str, version: str) -> None:
        """Note which model this worker serves from now on.

        In a file of its own: prometheus_client keeps a label's value forever, so that each
        reload would lengthen its files and the page.
        """
        try:
            write_atomically(self._served_model, json.dumps([digest, version]))
        except OSError as err:  # a full disk stops no worker
            log.warning("which model is served cannot be written for /metrics: %s", err)

    def on_call(self, n_requests: int, n_rows: int) -> None:
        """Count one kernel call."""
        self.call_requests.observe(n_requests)
        self.call_rows.observe(n_rows)
        self.instances.inc(n_rows)


class _SupervisorCollector(Collector):
    """What the supervisor counts, and which models the workers serve."""

    def __init__(self, shared: Path) -> None:
        self._status = shared / STATUS
        self._serving = shared / SERVING

    def collect(self) -> Iterator[Metric]:
        try:
            status: dict[str, Any] = json.loads(self._status.read_text())
        except (FileNotFoundError, ValueError):
            status = {}
        for name, text in _COUNTS.items():
            yield CounterMetricFamily(f"spark_fm_{name}", text, value=status.get(name, 0))
        yield GaugeMetricFamily("spark_fm_workers", "Workers", value=status.get("workers", 0))
        serving = GaugeMetricFamily(
            "spark_fm_model_workers", "Workers that serve a model version",
            labels=["digest", "version"],
        )  # fmt: skip
        for labels, count in sorted(Counted(self._served()).items()):
            serving.add_metric(labels, count)
        yield serving

    def _served(self) -> Iterator[tuple[str, str]]:
        for path in self._serving.iterdir():
            if path.name.isdecimal():  # not one that is being written
                with suppress(FileNotFoundError):  # a worker that has died
                    digest, version = json.loads(path.read_text())
                    yield digest, version
