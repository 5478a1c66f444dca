"""What leaves a run, for files and terminals: without secrets, and without characters that steer a terminal."""

import importlib
import os
import re
import sys
from typing import Any

MASK = "***"
# What a text with a secret, or one that steers a terminal, has in it; the rules themselves are in secrets.py.
_HINT = re.compile(
    r"(?i)[?#&;][^\s?#&;]*=|%3d|://|hf_|glpat-|xox|eyJ|sk-|\bgh[pousr]_|github_pat|A[KS]IA|PRIVATE|bearer|authoriz|AIza|(?:passw\w{0,20}|secret|_token|key)[\"']?\s*[:=]|(?:token|sig|signature)[\"']?\s*[:=]\s*[\"']?[\w%+/=.~-]{8}"
)
_PLAIN = re.compile(r"[\t\n -~]*")


def looks_secret(text: str) -> bool:
    """Whether the text holds what looks like a token, a private key or a password."""
    return _HINT.search(text) is not None and bool(_imported("secrets:looks_secret")(text))


def redact(text: str) -> str:
    """The text without its secrets; an address is the same however it was signed."""
    return str(_imported("secrets:redact")(text)) if _HINT.search(text) else text


def redacted(value: Any) -> Any:
    """A value of tables and lists with every text in it redacted."""
    if isinstance(value, dict):
        return {key: redacted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redacted(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def is_redacted(text: str) -> bool:
    """Whether an address lacks the secrets that it was written without."""
    return "://" in text and any(f"{mark}{MASK}" in text for mark in ("?", "&", "#", ";", "%3F", "://"))


class Outgoing:
    """A stream of the console: what is written to it is printable, and on stderr without secrets."""

    log: Any = None
    """The run's log.txt, which gets all that is written too."""

    def __init__(self, stream: Any, *, shows_secrets: bool = False) -> None:
        self._stream, self._shows_secrets = stream, shows_secrets

    def write(self, text: str) -> int:
        shown = self.cleaned(text)
        if self.log:
            self.log.add(shown)
        self._stream.write(shown)
        return len(text)

    def cleaned(self, text: str) -> str:
        """The text as it may be seen."""
        shown = text if self._shows_secrets else redact(text)
        return shown if _PLAIN.fullmatch(shown) else str(_imported("secrets:printable")(shown))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def moves_cursor(stream: Any) -> bool:
    """Whether a stream is a terminal on which a line can be replaced."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def guard_console() -> None:
    """Let nothing foreign steer the terminal, and no secret reach the log; a standard output in a file stays exact."""
    if sys.stderr and not isinstance(sys.stderr, Outgoing):
        style = "log_styles:JsonLines" if os.environ.get("LOG_FORMAT") == "json" else ""
        if not style and moves_cursor(sys.stderr):
            style = "terminal:TerminalStream"
        sys.stderr = _imported(style)(sys.stderr) if style else Outgoing(sys.stderr)
    if sys.stdout and sys.stdout.isatty() and not isinstance(sys.stdout, Outgoing):
        sys.stdout = Outgoing(sys.stdout, shows_secrets=True)


def _imported(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(f"titan_pt.run.{module}"), attribute)
