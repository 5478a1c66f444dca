"""A server on loopback that speaks enough of the Hub's API to be streamed from, with faults to switch on."""

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COMMIT = "c0ffee" + "0" * 34
REPOSITORY = "HuggingFaceFW/fineweb-edu"

Fault = Callable[[str, int], str]
"""(path of the request, requests so far) -> "", or "sleep", "trickle", "reset", "429", "500", "404", "page", "cut",
"short", "garbage", or one of FLIPS."""


FLIPS = {"flip": b"wopd", "no text": b"wo\xf2d"}
"""Faults of one bit of a text "word", which nothing in an uncompressed page tells."""


def no_fault(_path: str, _count: int) -> str:
    return ""


class HubServer(ThreadingHTTPServer):
    """Serves the files of a folder as a dataset, and as plain files."""

    daemon_threads = True
    block_on_close = False  # a sleeping answer must not hold the end of a test

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fault: Fault = no_fault
        self.sleep_seconds = 30.0
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.card: dict[str, Any] = {}
        self.version: dict[str, str] = {}  # headers that tell the version of every file
        self.down = False
        self.publishes_sha256 = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients leave in the middle: that is what the tests are about


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/agent-harnesses":  # huggingface_hub asks for it on its own, once a day and user
            self._send(404, b"")
            return
        kind = "listing" if path.startswith("/api/") else "file"
        self.server.requests[kind] += 1
        fault = self.server.fault(path, self.server.requests["file"])
        if self.server.down:
            fault = "reset"
        if fault:
            self.server.faults[fault] += 1
        if fault == "sleep":
            time.sleep(self.server.sleep_seconds)
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault in ("429", "500", "404"):
            self._send(int(fault), b"", {"Retry-After": "0"} if fault == "429" else {})
            return
        if fault == "page":
            self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
            return
        if fault == "trickle" and kind == "listing":
            self._trickle(200, b"{" + b" " * 1000, {"Content-Type": "application/json"})
        elif kind == "listing":
            self._listing()
        else:
            self._file(path, fault)

    do_HEAD = do_GET

    def _listing(self) -> None:
        files = sorted(path for path in self.server.folder.rglob("*") if path.is_file())
        siblings = [
            {
                "rfilename": str(path.relative_to(self.server.folder)),
                "size": path.stat().st_size,
                "blobId": hashlib.sha1(path.read_bytes()).hexdigest(),
                **self._lfs(path),
            }
            for path in files
        ]
        info = {"id": REPOSITORY, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": []}
        body = {**info, "downloads": 0, "likes": 0, "siblings": siblings, "cardData": self.server.card}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _lfs(self, path: Path) -> dict[str, Any]:
        if not self.server.publishes_sha256:
            return {}
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"lfs": {"size": path.stat().st_size, "sha256": sha256, "pointerSize": 1}}

    def _file(self, path: str, fault: str) -> None:
        match = re.search(r"/resolve/([^/]+)/(.*)", path)
        assert match is None or match[1] == COMMIT, "a pinned revision"
        file = self.server.folder / (match[2] if match else path.lstrip("/"))
        if not file.is_file():
            self._send(404, b"")
            return
        content = file.read_bytes()
        start, end = self._range(len(content))
        body = content[start:end]
        if fault == "garbage":
            body = bytes(byte ^ 0x5A for byte in body)
        if fault in FLIPS:
            parts = body.split(b"word")  # another one each time; the first are in statistics
            at = len(parts) // 2 + self.server.requests["file"] % (len(parts) // 2 + 1)
            body = b"word".join(parts[:at]) + FLIPS[fault] * (0 < at < len(parts)) + b"word".join(parts[at:])
        if fault == "short":  # a proxy that cut the file and says so
            body = body[: len(body) // 2]
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}", **self.server.version}
        if fault == "cut":
            self._send(206, body[: len(body) // 2], headers, length=len(body))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == "trickle":
            self._trickle(206, body, headers)
            return
        self._send(206 if "Range" in self.headers else 200, body, headers)

    def _trickle(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._send(status, b"", headers, length=len(body))
        for byte in body:
            self.wfile.write(bytes([byte]))
            time.sleep(0.2)

    def _range(self, size: int) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert match
        if not match[1]:
            return max(0, size - int(match[2])), size
        return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[HubServer]:
    """A running server."""
    server = HubServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def write_shards(folder: Path, texts: list[str], num_files: int, group_rows: int) -> list[Path]:
    """The texts as parquet files of small row groups, with columns that nobody asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    per_file = -(-len(texts) // num_files)
    paths = []
    for i in range(num_files):
        part = texts[i * per_file : (i + 1) * per_file]
        table = pa.table({"id": [f"{i}-{k}" for k in range(len(part))], "text": part, "other": ["x" * 50] * len(part)})
        paths.append(folder / f"{i:03d}_00000.parquet")
        pq.write_table(table, paths[-1], row_group_size=group_rows, compression="zstd")
    return paths
