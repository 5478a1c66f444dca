"""A port that a Prometheus server asks: the last row's numbers, the step, and the age of the last step."""

import logging
import re
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from titan_pt.sinks import Sink

if TYPE_CHECKING:
    from titan_pt.components.metrics import MetricRows

logger = logging.getLogger("titan_pt")

_LABELLED = re.compile(r"(source|eval)/(.+)/([^/]+)")
_LABELS = {"source": "source", "eval": "task"}


class PrometheusSink(Sink):
    """Answers GET /metrics. A port that is taken costs no run: it is told, and tried again with each logged row."""

    def __init__(self, rows: "MetricRows", host: str, port: int) -> None:
        self._rows, self._address = rows, (host, port)
        self._row: dict[str, Any] = {}
        self._server: ThreadingHTTPServer | None = None
        try:
            self._listen()
        except OSError as error:
            logger.error(
                f"metrics.prometheus_port = {port}: {host}:{port} cannot be opened: {error.strerror or error}; "
                "it is tried again with each logged step; training goes on"
            )

    def write(self, row: Mapping[str, Any]) -> None:
        self._row = {**self._row, **row}
        if self._server is None:
            try:
                self._listen()
            except OSError:
                return
            logger.info(f"metrics.prometheus_port = {self._address[1]}: open now")

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def text(self) -> str:
        """The answer, in Prometheus's text format."""
        interval, row = self._rows.interval, dict(self._row)
        step = row.pop("step", 0) + interval.num_steps
        families = {
            "titan_pt_step": [f"titan_pt_step {step}"],
            "titan_pt_last_step_age_seconds": [
                f"titan_pt_last_step_age_seconds {time.perf_counter() - interval.last_end:.3f}"
            ],
        }
        for key, value in row.items():
            if isinstance(value, int | float):
                name, labels = _series(key)
                families.setdefault(name, []).append(f"{name}{labels} {float(value)!r}")
        return "".join(f"# TYPE {name} gauge\n" + "".join(f"{line}\n" for line in families[name]) for name in families)

    def _listen(self) -> None:
        host, port = self._address
        sink = self

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # of whoever asks and sends nothing

            def do_GET(self) -> None:
                known = self.path.split("?")[0] in ("/", "/metrics")
                content = sink.text().encode() if known else b"GET /metrics\n"
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:
                """No line a request."""

        self._server = Server((host, port), Handler)
        threading.Thread(target=self._server.serve_forever, name="prometheus", daemon=True).start()


def _series(key: str) -> tuple[str, str]:
    """Name and labels of a key of metrics.jsonl."""
    labels = ""
    if match := _LABELLED.fullmatch(key):
        kind, owner, key = match.groups()
        key = f"{kind}_{key}"
        escaped = owner.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        labels = f'{{{_LABELS[kind]}="{escaped}"}}'
    return f"titan_pt_{re.sub(r'[^a-zA-Z0-9_]', '_', key)}", labels
