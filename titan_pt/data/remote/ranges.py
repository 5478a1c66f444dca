"""Parts of files over HTTP: one attempt each, with a hard time limit; bytes that came are not asked for again."""

import contextlib
import email.utils
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from titan_pt.data.remote.retry import Changed, Denied, Patience, Refused, Transient
from titan_pt.run.heartbeat import beat

_PIECE_BYTES = 1 << 16
_WHOLE_BYTES = 1 << 26  # a file up to this size may come from a server that knows no parts
_PART_BYTES = 1 << 31  # of one request
_RETRIED_STATUS = (408, 425, 429)  # and 5xx
_DENIED_STATUS = (401, 403, 404, 410, 451)
_LONGEST_RETRY_AFTER = 300.0


class Http:
    """Client that reads ranges of files, one attempt each; `persist` repeats them. Safe with several threads."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._local = threading.local()
        self._open: set[_Answer] = set()
        self._begun: dict[tuple[str, int, int], bytes] = {}
        self._sizes: dict[str, int] = {}  # of files whose end was under way
        self.versions: dict[str, str] = {}
        """What the last answer said of the version of each file, ETag and Last-Modified, where it said anything."""

    def read(self, url: str, start: int, length: int, size: int) -> bytes:
        """`length` bytes of a file of `size` bytes. What came before an answer broke off counts for the next attempt.

        Raises:
            Transient, Refused.
        """
        if length > _PART_BYTES:
            raise Refused(f"a part of {length:,} bytes is not asked for; row groups and footers have {_PART_BYTES:,}")
        key = url, start, length
        begun = self._begun.pop(key, b"")
        at = start + len(begun)
        answer = _Answer(start + length - at)
        try:
            self._get(url, f"bytes={at}-{start + length - 1}", answer)
        except Transient as error:
            error.progress = answer.first == at and len(answer.body) > 0 and not answer.whole
            if begun or error.progress:
                self._begun[key] = begun + (bytes(answer.body) if error.progress else b"")
            raise
        if answer.size not in (None, size):
            raise Changed(f"has {answer.size:,} bytes now, not the {size:,} of the listing")
        if answer.whole:
            if len(answer.body) != size:
                raise Refused(f"{len(answer.body):,} of {size:,} bytes came")
            return bytes(answer.body[start : start + length])
        if answer.first not in (None, at):
            raise Refused(f"bytes from {answer.first:,} came, not from {at:,}")
        if len(begun) + len(answer.body) != length:
            raise Refused(f"{len(begun) + len(answer.body):,} of {length:,} bytes came")
        return begun + bytes(answer.body)

    def read_end(self, url: str, length: int) -> tuple[bytes, int]:
        """The last bytes of a file, at most `length`, and its size.

        Raises:
            Transient, Refused.
        """
        size = self._sizes.pop(url, None)
        if size is not None:
            return self._read_end_by_place(url, length, size)
        answer = _Answer(length)
        try:
            self._get(url, f"bytes=-{length}", answer)
        except Denied:
            raise
        except Refused:  # some servers know parts by their place alone
            first = _Answer(1)
            self._get(url, "bytes=0-0", first)
            return self._read_end_by_place(url, length, _size_of(first))
        except Transient:
            if answer.size is not None:
                self._sizes[url] = answer.size
            raise
        if answer.whole:
            return bytes(answer.body[-length:]), len(answer.body)
        if len(answer.body) != min(length, _size_of(answer)):
            raise Refused(f"{len(answer.body):,} of {min(length, _size_of(answer)):,} bytes came")
        return bytes(answer.body), _size_of(answer)

    def interrupt(self) -> None:
        """End all requests that are under way, on all threads."""
        for answer in list(self._open):
            answer.cut()

    def _read_end_by_place(self, url: str, length: int, size: int) -> tuple[bytes, int]:
        start = max(0, size - length)
        try:
            return self.read(url, start, size - start, size), size
        except Transient:
            self._sizes[url] = size  # what came so far is kept by place
            raise

    def _get(self, url: str, span: str, answer: "_Answer") -> None:
        seconds = self._patience.attempt_seconds
        headers = {**_hub_headers(url), "Range": span, "Accept-Encoding": "identity"}
        end = time.monotonic() + seconds
        try:
            with (
                answer.ending_after(seconds, self._open),
                self._session().get(
                    url, headers=headers, stream=True, timeout=self._patience.socket_seconds
                ) as response,
            ):
                answer.begin(response)
                named = [name for name in ("ETag", "Last-Modified") if response.headers.get(name)]
                self.versions[url] = "\n".join(f"{name}: {response.headers[name].removeprefix('W/')}" for name in named)
                while piece := response.raw.read1(_PIECE_BYTES):  # what is there: a full piece may never come
                    answer.add(piece)
        except (requests.RequestException, HTTPError, OSError) as error:
            if time.monotonic() >= end:
                raise Transient(f"no whole answer within {seconds:g} s") from error
            cause = getattr(error.args[0], "reason", None) if error.args else None  # behind the client's own retries
            cause = cause if isinstance(cause, Exception) else error
            raise Transient(f"{type(cause).__name__}: {cause}") from error

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):  # sessions are not safe with several threads
            self._local.session = requests.Session()
            self._local.session.hooks["response"].append(_leave_redirect_unread)
            for scheme in _POOLS:
                self._local.session.mount(f"{scheme}://", _Adapter())
        session: requests.Session = self._local.session
        return session


class _Answer:
    """One HTTP answer, as far as it has come.

    Args:
        length: bytes that were asked for; a body of more is refused as it comes.
    """

    def __init__(self, length: int) -> None:
        self.body, self._length = bytearray(), length
        self.first: int | None = None
        """Number of the body's first byte in the file, where the server gives it."""
        self.size: int | None = None
        """Size of the whole file, where the server gives it."""
        self.whole = False
        """Whether the whole file came where a part was asked for."""
        self.socket: socket.socket | None = None

    def begin(self, response: requests.Response) -> None:
        """Read status and headers.

        Raises:
            Transient, Refused.
        """
        _check_status(response)
        self.whole = response.status_code == 200
        match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if match:
            self.first, self.size = int(match[1]), None if match[2] == "*" else int(match[2])
        length = response.headers.get("Content-Length", "")
        self._check_size(int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0)

    def add(self, piece: bytes) -> None:
        """Append some of the body."""
        beat()
        self.body += piece
        self._check_size(len(self.body))

    @contextlib.contextmanager
    def ending_after(self, seconds: float, answers: "set[_Answer]") -> Iterator[None]:
        """Cut the answer off after that time. The client's own time-out counts from the last byte."""
        timer = threading.Timer(seconds, self.cut)
        timer.daemon = True
        _answering.answer = self
        answers.add(self)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            answers.discard(self)

    def cut(self) -> None:
        """End the answer, from another thread."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def _check_size(self, size: int) -> None:
        if self.whole and size > _WHOLE_BYTES:
            raise Refused("the server sends whole files where a part is asked for, and this one is large")
        if not self.whole and size > self._length:
            raise Refused(f"{size:,} of {self._length:,} bytes came, and more")


_answering = threading.local()
"""The answer that this thread waits for."""


class _Noting:
    """Connection that hands its socket to the answer that waits for it, so that `cut` can end it."""

    sock: Any

    def request(self, *args: Any, **options: Any) -> None:
        super().request(*args, **options)  # type: ignore[misc]
        _answering.answer.socket = self.sock


def _noting(pool: type) -> type:
    connection = type(pool.ConnectionCls.__name__, (_Noting, pool.ConnectionCls), {})  # type: ignore[attr-defined]
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


_POOLS = {"http": _noting(HTTPConnectionPool), "https": _noting(HTTPSConnectionPool)}


class _Adapter(HTTPAdapter):
    """Adapter whose connections are of the pools in `_POOLS`."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager


def _leave_redirect_unread(response: requests.Response, **_options: Any) -> None:
    """Take the body of a redirect as empty: the client would read it whole, of any size, and then throw it away."""
    if response.is_redirect:
        response._content = b""


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status in _RETRIED_STATUS or status >= 500:
        raise Transient(f"HTTP {status}", retry_after(response.headers.get("Retry-After", "")))
    if status not in (200, 206):
        raise (Denied if status in _DENIED_STATUS else Refused)(f"HTTP {status} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise Refused("a web page came, not the file")


def _size_of(answer: _Answer) -> int:
    if answer.size is None:
        raise Refused("the server does not tell the size of the file")
    return answer.size


def retry_after(text: str) -> float:
    """Seconds of a Retry-After header: a number or a date; 0 where it is neither."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(_LONGEST_RETRY_AFTER, max(0.0, seconds))


def _hub_headers(url: str) -> dict[str, str]:
    """Headers with the user's token for addresses of the hub; none for other servers."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="titan_pt") if url.startswith(f"{constants.ENDPOINT}/") else {}
