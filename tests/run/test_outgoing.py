"""What leaves a run: no secret in what is written, nothing in what is shown that steers a terminal or a web page."""

import io
import sys
import time
from pathlib import Path

import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from titan_pt.config.errors import shown
from titan_pt.config.schema.job_config import Data, JobConfig, Source
from titan_pt.run import outgoing
from titan_pt.run.exit_codes import record_exit_code
from titan_pt.run.outgoing import redact
from titan_pt.run.secrets import fenced, printable


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://h/a.parquet?sv=2022&se=2026&sig=S3CRET%2Bd", "https://h/a.parquet?***"),
        ("url: /a.parquet?x=1&token=S3CRET (Caused by X)", "url: /a.parquet?x=1&*** (Caused by X)"),
        ("h/a?X-Amz-Date=1&X-Amz-Signature=S3CRET&f=2", "h/a?f=2&***"),
        ("h/a?X-Goog-Expires=9&X-Goog-Signature=S3CRET", "h/a?***"),
        ("https://h/a?token=S3CRET, https://h/b?c=d.", "https://h/a?***, https://h/b?c=d."),
        ("https://user:S3CRET@host/x", "https://***@host/x"),
        ("{'Authorization': 'Bearer S3CRET'}", "{'Authorization': 'Bearer ***'}"),
        ("https://S3CRETabcd@host/x, https://u:p@S3CRET@h/x", "https://***@host/x, https://***@h/x"),
        ("h/a?key=S3CRETabcdefghijk&code=S3CRETabcdefghijk%3D%3D&x=1", "h/a?x=1&***"),
        ("h/a?SharedAccessSignature=S3CRET and h/a?token[]=S3CRET&x[token]=S3CRET", "h/a?*** and h/a?***"),
        ("h/a;sig=S3CRET and h/a?%73ig=S3CRET and h/a?sig%3DS3CRET", "h/a;*** and h/a?*** and h/a?***"),
        ("h/r?url=https%3A%2F%2Fb%2Fa%3Fx%3D1%26sig%3DS3CRET", "h/r?url=https%3A%2F%2Fb%2Fa%3Fx%3D1&***"),
        ('{"sig": "S3CRETab", "token": "S3CRETab"}', '{"sig": "***", "token": "***"}'),
        ("POST sig=S3CRET%2Fd&sv=2", "POST sig=***&sv=2"),
        ("AccountKey=S3CRET==;EndpointSuffix=h", "AccountKey=***;EndpointSuffix=h"),
        ("glpat-S3CRETabcdefghijkl xoxb-S3CRET123456-abc", "*** ***"),
        ("hf_S3CRETabcdefghijklmnop", "***"),
        ("aws_secret_access_key = S3CRET/abc+d", "aws_secret_access_key = ***"),
        ("AKIAS3CRETABCDEFGH and ASIAS3CRETABCDEFGH", "*** and ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nS3CRET\n-----END RSA PRIVATE KEY-----\nmore", "***\nmore"),
    ],
)
def test_a_secret_is_not_written(text: str, left: str) -> None:
    assert redact(text) == left and redact(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "https://h/a.parquet?design=3&file=b&key=c",
        "tokenizer.eos_token = '<x>'; tokens: 5, a token: b",
        "abfss://training-data@account.dfs.core.windows.net/a;b=c, ssh://git@host/x, hf://datasets/a/b@main",
        "token: <|endoftext|>, signature: (a, b), sig=None, eos_token=endoftext2",
        "SELECT x FROM y WHERE a=1?",
        "the bearer of the password policy",
        "lr=0.1 step=3 weight_decay 0",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "?",
        "a",
        "passw",
        "token",
        "://",
        "key= ",
        "?a=&",
        "\x1b",
        "_.",
        "secret:",
        "`",
        "hf_",
        "eyJ-",
        "sig=",
        "%3F",
        ";a[",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    started = time.process_time()
    printable(redact(piece * 50_000 + "?token=S3CRET"))
    assert time.process_time() - started < 3


def test_a_config_is_written_without_secrets_and_asks_for_them() -> None:
    path = "https://h/a.parquet?sig=S3CRET"
    config = JobConfig(data=Data(sources=[Source(name="web", path=path)]))
    assert config.data.sources[0].path == path
    assert "S3CRET" not in config.to_toml() and "a.parquet?***" in config.to_toml()
    assert shown(path) == "'https://h/a.parquet?***'"
    with pytest.raises(ValueError, match="its secret was left out when the config was written; give it again"):
        Source(name="web", path="https://h/a.parquet?***")


def test_what_is_shown_steers_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = "a\x1b]0;title\x07b\r\x9b31m\u202edrow\u2028\x7f\tc\n  d"
    told = "a\\x1b]0;title\\x07b\\r\\x9b31m\\u202edrow\\u2028\\x7f\tc\n  d"
    assert printable(foreign) == told
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    outgoing.guard_console()
    outgoing.guard_console()
    print(foreign, "https://h/?sig=S3CRET", "Grüße, 世界 🎉", file=sys.stderr)
    assert written.getvalue() == f"{told} https://h/?*** Grüße, 世界 🎉\n"


@pytest.mark.parametrize(
    "text",
    [
        "```\n<img src=x>\n[a](http://b) ![c](http://d)",
        "`````\n</code></pre><img src=x>\n~~~\n![c](http://d)",
        "a\r```\r![c](http://d)\r\n   ```\n![e](http://f)",
        "\n\n    ````\n| a | b |\n|---|---|\n| ![c](http://d) | <b> |",
        "",
    ],
)
def test_a_text_is_one_block_on_a_web_page(text: str) -> None:
    page = markdown_to_safe_html(fenced(text))
    assert page.startswith("<pre><code>") and page.rstrip().endswith("</code></pre>")
    assert page.count("<") == 4, page


def test_the_reason_of_an_end_is_told_to_the_launcher_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITAN_PT_EXIT_CODES", str(tmp_path))
    assert record_exit_code(1, "GET https://h/?sig=S3CRET")
    assert "S3CRET" not in (tmp_path / "rank-0").read_text()
