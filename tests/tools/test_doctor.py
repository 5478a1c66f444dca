"""What the doctor says of a machine that has everything, and of one that lacks something."""

import importlib.metadata
from pathlib import Path

import pytest
from tool_helpers import tool_here

from titan_pt.tools import doctor


def test_a_screen_and_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://user:hf_abcdefghijklmnopqrstuvwxyz@127.0.0.1:9")  # nobody listens
    assert tool_here(doctor.main) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    found = {line[4:15].strip(): line for line in lines}
    assert {"version", "packages", "[eval]", "cpu", "torch", "gpu", "runs", "cache", "hub"} - {"gpu"} <= found.keys()
    assert found["hub"].startswith("- ") and "does not answer" in found["hub"] and "hf_abc" not in found["hub"]

    deep = tmp_path / ("a folder of a long name " * 4).strip()  # longer than a line: nothing of it is cut off
    deep.mkdir()
    monkeypatch.chdir(deep)
    monkeypatch.setattr(doctor, "_unwritable", lambda folder: "cannot be written to" if folder == deep else "")
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "pyarrow" else real(name))
    assert tool_here(doctor.main, "--hub_seconds", 0) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    out = " ".join(" ".join(lines).split())
    assert "pyarrow 0.1 is not >=24" in out and "cannot be written to" in out
    assert "! is what every run needs: packages, runs" in out
