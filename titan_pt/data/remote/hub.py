"""The errors of the hub's libraries, sorted into those that pass and those that do not."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from titan_pt.config.errors import ConfigError
from titan_pt.data.remote.ranges import retry_after
from titan_pt.data.remote.retry import Denied, Refused, Transient
from titan_pt.data.sources.unreadable import WITHOUT_HUB
from titan_pt.run.files import MOST_BYTES

T = TypeVar("T")


@functools.cache
def bound_answers() -> None:
    """Have the hub's client refuse lists of files without end, for this process."""
    from huggingface_hub.utils import _http

    def client() -> Any:
        found = _http.default_client_factory()
        hooks = found.event_hooks
        found.event_hooks = {**hooks, "response": [*hooks["response"], _read_bounded]}
        return found

    _http.set_client_factory(client)


def _read_bounded(response: Any) -> None:
    """Read an answer of the API, of which the client would take any size. Files come by another way."""
    asked = response.request.extensions  # which a request that follows a redirect takes over
    asked["is_api"] = asked.get("is_api") or response.request.url.path.startswith("/api/")
    if not asked["is_api"]:
        return
    body = bytearray()
    for piece in response.iter_bytes(1 << 16):
        body += piece
        if len(body) > MOST_BYTES:
            raise Refused(f"{response.request.url.path}: an answer of more than {MOST_BYTES:,} bytes")
    response._content = bytes(body)


def attempt(ask: Callable[[], T]) -> T:
    """Make one request to the hub, or one download by `datasets`, and sort its errors.

    Raises:
        Transient: the network or the server.
        Denied: it is not there, or not for this user.
        ConfigError: there is no such dataset or revision, or the hub is switched off.
        Exception: anything else, as it is.
    """
    try:
        return ask()
    except Exception as error:
        for cause in _causes(error):  # `datasets` wraps some of them
            if (found := _sorted(cause)) is not None:
                raise found from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _sorted(error: BaseException) -> Exception | None:
    from huggingface_hub import errors

    reason = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError):
        return ConfigError(reason)  # gated ones are of these
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConfigError(f"the hub is switched off by HF_HUB_OFFLINE; unset it, or {WITHOUT_HUB}")
    # Lost connections and time-outs: of the client library, and what `datasets` makes of them.
    lost = isinstance(error, ConnectionError | TimeoutError | errors.LocalEntryNotFoundError)
    if lost or type(error).__module__.startswith("httpx"):
        return Transient(f"{type(error).__name__}: {reason}; without a network, {WITHOUT_HUB}")
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    status = error.response.status_code if error.response is not None else 500
    if 400 <= status < 500 and status not in (408, 429):
        return Denied(f"HTTP {status}: {reason}")
    headers = error.response.headers if error.response is not None else {}
    return Transient(f"HTTP {status}: {reason}", retry_after(headers.get("Retry-After", "")))
