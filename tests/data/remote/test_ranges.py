"""Parts of files from servers that trickle, break off, know no parts, or send others than those asked for."""

import email.utils
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from titan_pt.config import ConfigError
from titan_pt.data.remote import hub
from titan_pt.data.remote.ranges import Http, retry_after
from titan_pt.data.remote.retry import (
    Attempts,
    Changed,
    Denied,
    Patience,
    Refused,
    Stopped,
    Transient,
    Unreachable,
    persist,
)
from titan_pt.data.sources.unreadable import explained

FILE = bytes(i * 7 % 256 for i in range(5000))


class RawServer(socketserver.ThreadingTCPServer):
    """Serves FILE badly."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RawHandler)
        self.kind = ""
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that leave are the point


class RawHandler(socketserver.StreamRequestHandler):
    server: RawServer

    def handle(self) -> None:
        asked = ""
        while (line := self.rfile.readline().strip().lower()) != b"":
            asked = line.removeprefix(b"range: bytes=").decode() if line.startswith(b"range") else asked
        self.server.asked.append(asked)
        first, _, last = asked.partition("-")
        start, end = (int(first), int(last) + 1) if first else (len(FILE) - int(last), len(FILE))
        self._answer(self.server.kind, start, end, suffix=not first)

    def _answer(self, kind: str, start: int, end: int, suffix: bool) -> None:
        if kind == "trickling head":
            self._trickle(b"HTTP/1.1 206 Partial Content" + b" " * 1000)
        if kind.isdigit() or (kind == "by place" and suffix):
            self._send(int(kind) if kind.isdigit() else 416, b"", {})
            return
        if kind in ("whole", "whole and cut"):
            self._send(200, FILE if kind == "whole" else FILE[:-10], {})
            return
        if kind == "page":
            self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html; charset=utf-8"})
            return
        start, end = (start + 1, end + 1) if kind == "shifted" else (start, end)
        size: object = len(FILE) + (kind == "grown")
        if kind == "digits":
            size = "9" * 5000
        if kind == "endless redirect":
            self.wfile.write(b"HTTP/1.1 302 Why\r\nLocation: /b\r\n\r\n")
            while True:
                self.wfile.write(FILE)
        if kind == "endless":
            self.wfile.write(f"HTTP/1.1 206 Why\r\nContent-Range: bytes {start}-{end - 1}/{size}\r\n\r\n".encode())
            while True:
                self.wfile.write(FILE)
        body, headers = FILE[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        if kind == "trickle":
            self._head(206, len(body), headers)
            self._trickle(body)
        elif kind == "broken":  # a hundred bytes of each answer
            self._head(206, len(body), headers)
            self.wfile.write(body[:100])
        else:
            self._send(206, body[: len(body) // 2] if kind == "short" else body, headers)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Why", f"Content-Length: {length}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(body), headers)
        self.wfile.write(body)

    def _trickle(self, content: bytes) -> None:
        for byte in content:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield found
        found.shutdown()


PATIENCE = Patience(attempt_seconds=0.5, first_pause_seconds=0.01, longest_pause_seconds=5.0, start_seconds=20)


@pytest.mark.parametrize("kind", ["", "whole", "by place"])
def test_servers_that_know_parts_in_their_own_way(server: RawServer, kind: str) -> None:
    server.kind = kind
    http = Http(PATIENCE)
    assert http.read(server.url, 100, 50, 5000) == FILE[100:150]
    assert http.read_end(server.url, 64) == (FILE[-64:], 5000)


def test_numbers_of_thousands_of_digits_are_none(server: RawServer) -> None:
    server.kind = "digits"
    assert Http(PATIENCE).read(server.url, 100, 50, 5000) == FILE[100:150]
    with pytest.raises(Refused, match="does not tell the size"):
        Http(PATIENCE).read_end(server.url, 64)
    with pytest.raises(Refused, match="4,000,000,000 bytes is not asked for"):
        Http(PATIENCE).read(server.url, 0, 4 * 10**9, 10**10)
    assert retry_after("Mon, 01 Jan 99999999999999999999 00:00:00 GMT") == 0


@pytest.mark.parametrize("kind", ["trickle", "trickling head"])
def test_an_attempt_ends_however_slowly_bytes_come(server: RawServer, kind: str) -> None:
    server.kind = kind
    started = time.monotonic()
    with pytest.raises(Transient, match=r"no whole answer within 0.5 s"):
        Http(PATIENCE).read(server.url, 0, 5000, 5000)
    assert time.monotonic() - started < 3


def test_nobody_there_is_told_in_a_few_words() -> None:
    with pytest.raises(Transient, match=r"^NameResolutionError: .*no-such-host") as found:
        Http(PATIENCE).read("http://no-such-host.invalid/x", 0, 10, 10)
    assert "Max retries" not in str(found.value)


def test_an_interrupt_ends_it_at_once(server: RawServer) -> None:
    server.kind = "trickle"
    http = Http(Patience(attempt_seconds=60.0))
    threading.Timer(0.3, http.interrupt).start()
    started = time.monotonic()
    with pytest.raises(Transient):
        http.read(server.url, 0, 5000, 5000)
    assert time.monotonic() - started < 3


def test_bytes_before_a_break_are_kept(server: RawServer) -> None:
    """A server that breaks off after every hundred bytes still gives the whole, without growing pauses."""
    server.kind = "broken"
    http, started = Http(PATIENCE), time.monotonic()
    attempts = Attempts("part", PATIENCE)
    assert persist(lambda: http.read(server.url, 0, 2000, 5000), attempts, threading.Event()) == FILE[:2000]
    assert server.asked == [f"{start}-1999" for start in range(0, 2000, 100)]
    assert persist(lambda: http.read_end(server.url, 300), attempts, threading.Event()) == (FILE[-300:], 5000)
    assert server.asked[20:] == ["-300", "4700-4999", "4800-4999", "4900-4999"]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("404", Denied, "HTTP 404 Why"),
        ("400", Refused, "HTTP 400"),
        ("503", Transient, "HTTP 503"),
        ("page", Refused, "a web page came"),
        ("shifted", Refused, "bytes from 101 came, not from 100"),
        ("endless", Refused, "of 50 bytes came, and more"),
        ("endless redirect", Transient, "TooManyRedirects"),
        ("short", Refused, "25 of 50 bytes came"),
        ("whole and cut", Refused, "4,990 of 5,000 bytes came"),
        ("grown", Changed, "has 5,001 bytes now, not the 5,000 of the listing"),
    ],
)
def test_wrong_answers_are_told(server: RawServer, kind: str, error: type[Exception], reason: str) -> None:
    server.kind = kind
    with pytest.raises(error, match=reason):
        Http(PATIENCE).read(server.url, 100, 50, 5000)


def test_an_answer_of_the_hub_is_bounded_wherever_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    httpx2 = pytest.importorskip("httpx2")  # whose name goes with the release of the hub's client
    monkeypatch.setattr(hub, "MOST_BYTES", 100)
    away = httpx2.Response(307, headers={"Location": "/b"})
    server = httpx2.MockTransport(
        lambda asked: away if asked.url.path == "/api/a" else httpx2.Response(200, text=101 * "b")
    )
    with httpx2.Client(
        transport=server, event_hooks={"response": [hub._read_bounded]}, follow_redirects=True
    ) as client:
        assert client.get("http://hub/file").text == 101 * "b"
        with pytest.raises(Refused, match="/b: an answer of more than 100 bytes"):
            client.get("http://hub/api/a")


def test_a_part_of_a_large_file_reads_no_more(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titan_pt.data.remote.ranges._WHOLE_BYTES", 1000)
    server.kind = "whole"
    with pytest.raises(Refused, match="whole files where a part is asked for"):
        Http(PATIENCE).read(server.url, 100, 50, 5000)


def test_a_server_may_say_when_to_come_back() -> None:
    assert retry_after("7") == 7 and retry_after("1.5") == 1.5 and retry_after("100000") == 300
    assert 28 < retry_after(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 30
    assert retry_after(email.utils.formatdate(time.time() - 30, usegmt=True)) == 0
    assert retry_after("") == retry_after("soon") == retry_after("-3") == retry_after("nan") == 0


def test_a_start_gives_up_missing_files_soon(caplog: pytest.LogCaptureFixture) -> None:
    def denied() -> None:
        raise Denied("HTTP 404")

    def silent() -> None:
        raise Transient("nobody there")

    stop = threading.Event()
    with pytest.raises(Exception, match=re.escape("file: HTTP 404 (3 times)")):
        persist(denied, Attempts("file", PATIENCE, limit_seconds=20), stop)
    with pytest.raises(Exception, match=re.escape("file: HTTP 404 (8 times)")):
        persist(denied, Attempts("file", Patience(first_pause_seconds=0.001)), stop)
    with pytest.raises(Unreachable, match="nobody there; nothing of use for 0 s"):
        persist(silent, Attempts("file", PATIENCE, limit_seconds=0.05), stop)
    assert "the start waits up to 20 s for it" in caplog.text
    stop.set()
    with pytest.raises(Stopped):
        persist(silent, Attempts("file", PATIENCE), stop)


def test_without_the_hub_one_is_told_what_to_do() -> None:
    def ask(error: Exception) -> None:
        raise error

    for raised, found in ((ConnectionError("no route"), Transient), (OfflineModeIsEnabled("set"), ConfigError)):
        with pytest.raises(found, match=r"`hf download --repo-type dataset NAME .* path = .*HF_ENDPOINT names"):
            hub.attempt(lambda error=raised: ask(error))  # type: ignore[misc]
    said = str(explained(ConnectionError("Couldn't reach it (OfflineModeIsEnabled)"), "data source 'a'"))
    assert said.startswith("data source 'a': cannot be read: ConnectionError: ") and "hf download" in said
