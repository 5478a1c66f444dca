"""The errors of the hub's libraries, sorted into those that pass and those that do not."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from titan_pt.config.errors import ConfigError
from titan_pt.data.remote.ranges import retry_after
from titan_pt.data.remote.retry import Denied, Transient

T = TypeVar("T")


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
        return ConfigError(f"the hub is switched off by HF_HUB_OFFLINE: {error}")
    # Lost connections and time-outs: of the client library, and what `datasets` makes of them.
    lost = isinstance(error, ConnectionError | TimeoutError | errors.LocalEntryNotFoundError)
    if lost or type(error).__module__.startswith("httpx"):
        return Transient(f"{type(error).__name__}: {reason}")
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    status = error.response.status_code if error.response is not None else 500
    if 400 <= status < 500 and status not in (408, 429):
        return Denied(f"HTTP {status}: {reason}")
    headers = error.response.headers if error.response is not None else {}
    return Transient(f"HTTP {status}: {reason}", retry_after(headers.get("Retry-After", "")))
