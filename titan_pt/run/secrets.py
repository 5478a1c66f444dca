"""The rules of `outgoing.py`: what is a secret, what steers a terminal. Imported where a text may hold one."""

import re
from urllib.parse import unquote

from titan_pt.run.outgoing import MASK

# Tokens of Hugging Face, OpenAI-like services, GitHub, GitLab, Slack, AWS and Google, signed tokens of JSON, private
# keys, and passwords or tokens before the host of a URL.
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}"
    r"|\bglpat-[\w-]{16,}|\bxox[a-z]-[\w-]{10,}|(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|\bA(?:KI|SI)A[A-Z0-9]{12,}|\bAIza[\w-]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY[\s\S]*?(?:-----END[^\n]*|\Z)"
    r"|(?<=://)[^/\s:@?#\"]*:[^/\s?#\"]+(?=@)|(?:(?<=http://)|(?<=https://))[^/\s:@?#\"]{8,}(?=@)"
)
_NAMED = re.compile(
    r"(?i)((?:authorization[\"']?\s*[:=]\s*[\"']?(?:bearer |basic |token |negotiate )?|\bbearer (?=\S{16})"
    r"|(?<![\w-])[\w-]{0,64}?(?:password|passwd|secret|secret_access_key|session_token|access_token|auth_token|api[_-]?key"
    r"|a(?:ccount|ccess)[_-]?key)[\"']?\s*[:=]\s*[\"']?"
    r"|(?<![\w.-])(?:sig|signature|token)[\"']?\s*[:=]\s*[\"']?(?=[\w%+/=.~-]{20}|(?=[A-Za-z%+/=.~-]*\d)[\w%+/=.~-]{8})"
    r"))(?!(?:bearer |basic |token |negotiate )?\*\*\*)[^\s\"',;&}]+"
)
_MARK = r"[?#&;]|%3[Ff]|%26|%23|%3[Bb]"
"""What parts of a query begin with, inside another one's value too."""
_QUERY = re.compile(rf"(?:{_MARK})[^\s\"'<>]*")
_PART = re.compile(rf"({_MARK})((?:(?!{_MARK}).)*)")
_KEY = re.compile(r"(?:key|code)=[\w%+=-]{16,}")
_SECRET_NAME = re.compile(
    r"(?i)(?:[\w.-]*[_.-])?(?:sig|signature|credential|token|secret|password|passwd|pwd|auth|authorization|jwt|apikey"
    r"|accesskey|hmac|(?<=[_.-])key)|[\w.-]*(?:signature|secret|password|accesstoken|apikey)"
)
# What is signed anew with the rest: of AWS, Google, CloudFront and Azure.
_SIGNED_NAME = re.compile(
    r"(?i)x-(?:amz|goog)-.*|expires|googleaccessid|awsaccesskeyid|key-pair-id|policy|s[tevprk]|spr|sip|sdd|sk[otesv]\w*"
)
# C0, C1, line separators, marks of direction, tags; a line's end and a tab stay.
_STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)


def looks_secret(text: str) -> bool:
    """Whether the text holds what looks like a token, a private key or a password."""
    return _SECRET.search(text) is not None


def redact(text: str) -> str:
    """The text without its secrets: tokens, passwords, and all that signs an address."""
    if "=" in text or "%3" in text:
        text = _QUERY.sub(_redacted_query, text)
    return _NAMED.sub(rf"\g<1>{MASK}", _SECRET.sub(MASK, text))


def printable(text: str) -> str:
    """A text whose characters show what they are and do nothing else; its lines stay lines."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def fenced(text: str) -> str:
    """A text as a block of Markdown that it cannot end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{printable(text)}\n{fence}"


def _redacted_query(found: re.Match[str]) -> str:
    """A query without what signs it, however many parts that has."""
    text = found[0].rstrip(",.:)]}")
    parts = _PART.findall(text)
    names = [_name(part) for _, part in parts]
    secret = [
        bool(_SECRET_NAME.fullmatch(name) or _KEY.fullmatch(part)) for (_, part), name in zip(parts, names, strict=True)
    ]
    if not any(secret):
        return found[0]
    kept = [
        mark + part
        for (mark, part), name, is_secret in zip(parts, names, secret, strict=True)
        if not (is_secret or _SIGNED_NAME.fullmatch(name) or part == MASK)
    ]
    kept.append(f"&{MASK}")
    kept[0] = parts[0][0] + re.sub(f"^(?:{_MARK})", "", kept[0])
    return "".join(kept) + found[0][len(text) :]


def _name(part: str) -> str:
    """The name of a part of a query, however it is written: x[token], %73ig."""
    return re.sub(r"[\[\]]+", ".", unquote(part).partition("=")[0]).strip(".")
