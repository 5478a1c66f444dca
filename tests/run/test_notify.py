"""job.notify: who is told of the end of a run, and that it costs nothing."""

import ast
import io
import sys
import time
from pathlib import Path

import pytest

from titan_pt import launch
from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import load_config
from titan_pt.config.schema.job import Job
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run import notify as notifying
from titan_pt.run.log import open_console
from titan_pt.run.log_file import LOG_FILE
from titan_pt.run.notify import notify


def config_of(command: str, folder: Path) -> JobConfig:
    return JobConfig(job=Job(notify=command, dump_folder=str(folder)))


def test_the_command_learns_code_reason_and_folder_without_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "tell it.py"
    script.write_text(
        "import os, sys\n"
        "words = [os.environ[f'TITAN_PT_{name}'] for name in ('CODE', 'REASON', 'FOLDER')]\n"
        f"open({str(tmp_path / 'told')!r}, 'w').write(repr([*words, *sys.argv[1:]]))"
    )
    notify(config_of(f"{sys.executable} '{script}' '$HOME; ls'", tmp_path), 70, ["gave up: GET https://h/?sig=S3CRET"])
    found = ast.literal_eval((tmp_path / "told").read_text())
    assert found == ["70", "gave up: GET https://h/?***", str(tmp_path), "$HOME; ls"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/no/such/program", "job.notify: /no/such/program: [Errno 2]"),
        (f"{sys.executable} -c 'raise SystemExit(\"no network\")'", "ended with 1: no network"),
        ("sleep 60", "job.notify: sleep took more than 0.2 s and was ended"),
    ],
)
def test_a_command_that_fails_costs_nothing(
    tmp_path: Path, command: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifying, "MOST_SECONDS", 0.2 if "sleep" in command else 30.0)
    started = time.monotonic()
    notify(config_of(command, tmp_path), 0, [])
    assert said in capsys.readouterr().err and time.monotonic() - started < 20


def test_a_command_line_with_open_quotes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"job.notify = .*No closing quotation\); close the quotes"):
        load_config(["--job.config_file", "train_configs/quickstart.toml", "--job.notify", "mail -s 'done"])


def test_what_the_launcher_tells_of_it_is_in_the_log_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOG_FILE).write_text("the ranks\n")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    open_console()
    assert launch._tell_end(config_of("/no/such/program", tmp_path), 70, ["gave up: why"]) == 70
    first, problem, last = (tmp_path / LOG_FILE).read_text().splitlines()
    assert problem.startswith("job.notify: /no/such/program") and (first, last) == ("the ranks", "gave up: why")
