"""Envoy in front of gateways: affinity by cookie, readiness, another try at another one (docs/scaling.md)."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.server.client import HttpClient
from tests.server.processes import free_port

COOKIE = "wanstream-pod"
Affinity = Literal["cookie", "hash"]

_TYPES = "type.googleapis.com/envoy.extensions"
_STATEFUL_SESSION = {
    "name": "envoy.filters.http.stateful_session",
    "typed_config": {
        "@type": f"{_TYPES}.filters.http.stateful_session.v3.StatefulSession",
        "session_state": {
            "name": "envoy.http.stateful_session.cookie",
            "typed_config": {
                "@type": f"{_TYPES}.http.stateful_session.cookie.v3.CookieBasedSessionState",
                "cookie": {"name": COOKIE, "path": "/", "ttl": "3600s"},
            },
        },
    },
}


class Envoy:
    """Running; requests go to `url`."""

    def __init__(self, port: int, admin_port: int, log_path: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = HttpClient(self.url)
        self._admin = HttpClient(f"http://127.0.0.1:{admin_port}")
        self._log_path = log_path

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")[-4000:]

    def healthy(self) -> set[int]:
        """Ports of the gateways that get new viewers."""
        text = self._admin.request("GET", "/clusters", timeout_s=5).text
        lines = [line.split("::") for line in text.splitlines() if "::health_flags::" in line]
        return {int(parts[1].rpartition(":")[2]) for parts in lines if parts[-1] == "healthy"}


def configuration(
    port: int, admin_port: int, upstream: Sequence[int], affinity: Affinity = "cookie"
) -> dict[str, Any]:
    """Of Envoy, in front of gateways at these ports of this machine.

    affinity: `cookie` names the gateway; `hash` is what Envoy Gateway makes of the chart's policy: a cookie
    whose hash leads to a gateway, always the same one.
    """
    hashed = affinity == "hash"
    by_cookie = {"hash_policy": [{"cookie": {"name": COOKIE, "ttl": "3600s"}}]}
    route: dict[str, Any] = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "gateways",
            "timeout": "0s",
            **(by_cookie if hashed else {}),
            # A gateway that is full answers 503, one that is gone nothing: another one is tried, and the
            # cookie of its answer leads there from then on. A refused offer has left nothing behind.
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,retriable-status-codes",
                "retriable_status_codes": [503],
                "num_retries": 3,
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": {
                            "@type": f"{_TYPES}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                        },
                    }
                ],
                "host_selection_retry_max_attempts": 5,
            },
        },
    }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            *([] if hashed else [_STATEFUL_SESSION]),
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
            },
        ],
    }
    cluster = {
        "name": "gateways",
        "type": "STATIC",
        "lb_policy": "MAGLEV" if hashed else "ROUND_ROBIN",
        "connect_timeout": "1s",
        "common_lb_config": {
            "override_host_status": {"statuses": ["UNKNOWN", "HEALTHY"]},
            "healthy_panic_threshold": {"value": 0},
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                # A slow answer is no end; /ready's 503 counts at once, and refused connections are retried.
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/ready", "host": "localhost"},
            }
        ],
        "load_assignment": {
            "cluster_name": "gateways",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(each)}} for each in upstream]}],
        },
    }
    listener = {
        "name": "in",
        "address": _address(port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return {
        "admin": {"address": _address(admin_port)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


@contextmanager
def envoy(directory: Path, upstream: Sequence[int], affinity: Affinity = "cookie") -> Iterator[Envoy]:
    """Raises AssertionError, with its log, when it does not find the gateways within 15 s."""
    ports = free_port(), free_port()
    directory.mkdir(parents=True, exist_ok=True)
    config, log_path = directory / "envoy.yaml", directory / "envoy.log"
    config.write_text(yaml.safe_dump(configuration(*ports, upstream, affinity)))
    # Its launcher outlives what it starts; the program itself ends when it is told to.
    program = str(resources.files("envoy") / "_bin" / "envoy")
    command = [program, "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    found = Envoy(*ports, log_path)
    try:
        _wait_for(found, process, set(upstream))
        yield found
    finally:
        process.kill()
        process.wait()


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _wait_for(found: Envoy, process: "subprocess.Popen[bytes]", upstream: set[int]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        assert process.poll() is None, f"Envoy ended:\n{found.log}"
        try:
            if found.healthy() == upstream:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"Envoy does not find the gateways:\n{found.log}")
