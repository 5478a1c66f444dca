"""titan_pt in Python: runs and models, more than once in a process and not only in its main thread."""

import logging
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import losses, write_toml

import titan_pt
from titan_pt.config import ConfigError, load_config
from titan_pt.version import made_by


def test_a_process_trains_and_generates_again_and_again(tmp_path: Path) -> None:
    handlers, log = signal.getsignal(signal.SIGINT), logging.getLogger("titan_pt")
    before, streams = (log.handlers, log.level), (sys.stdout, sys.stderr)
    told = tmp_path / "told"
    config = write_toml(tmp_path, job={"notify": f"sh -c 'echo $TITAN_PT_CODE >> {told}'"}, training={"steps": 2})
    rows = [
        titan_pt.run(config, {"optimizer.lr": lr, "job.dump_folder": tmp_path / name, "validation.enable": False})
        for lr, name in ((1e-3, "a"), (2e-3, "b"))
    ]
    assert [row["step"] for row in rows] == [2, 2]
    assert rows[0]["loss"] != rows[1]["loss"] and rows[0]["loss"] == pytest.approx(losses(tmp_path / "a")[2])
    assert titan_pt.run(config, {"job.dump_folder": str(tmp_path / "a")}) == rows[0], "it is done already"
    further: list[dict[str, Any]] = []
    options = {"job.dump_folder": tmp_path / "a", "training.steps": 3}
    thread = threading.Thread(target=lambda: further.append(titan_pt.run(load_config([str(config)]), options)))
    thread.start()
    thread.join()
    assert further[0]["step"] == 3, "a run goes on, also from another thread"
    assert signal.getsignal(signal.SIGINT) is handlers and (log.handlers, log.level) == before
    assert (sys.stdout, sys.stderr) == streams, "what a caller prints is his own"
    assert told.read_text().split() == ["0"] * 4
    said = (tmp_path / "a" / "log.txt").read_text()
    assert [said.count(f"Training is done at step {step}:") for step in (2, 3)] == [2, 1]

    model = titan_pt.load(tmp_path / "a")
    text = model.generate("1 + 1", max_new_tokens=4, temperature=0)
    assert text == titan_pt.load(str(tmp_path / "a")).generate("1 + 1", max_new_tokens=4, temperature=0)
    assert [len(texts) for texts in model.generate_batch(["a", "b"], num_samples=3, max_new_tokens=2)] == [3, 3]
    for text, options, said in (
        ("1", {"temperature": -1}, "temperature = -1: must be 0"),
        ("1", {"temperature": "hot"}, "temperature = 'hot': must be a number"),
        ("1", {"num_samples": 2}, "generate_batch([text], num_samples=...)"),
        ("1" * 9, {"max_new_tokens": 1 << 20}, "tokens and max_new_tokens = "),
        (None, {}, "text 1: must be a text, or a conversation"),
        (["1", "2"], {}, "text 1: must be a text, or a conversation"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            model.generate(text, **options)  # type: ignore[arg-type]
    for path, options, said in (
        (config, {}, f"path = '{config}': an experiment; train it by titan-pt train {config}, then give"),
        (tmp_path / "c", {}, "path = '"),
        (None, {}, "path = None: must be a text"),
        (tmp_path / "a", {"dtype": "fp16"}, "dtype = 'fp16': must be one of bfloat16, float16, float32"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
            titan_pt.load(path, **options)  # type: ignore[arg-type]


def test_mistakes_and_signals_are_exceptions(tmp_path: Path) -> None:
    config = write_toml(tmp_path, training={"steps": 100_000})
    with pytest.raises(ConfigError, match=r"did you mean optimizer\.lr"):
        titan_pt.run(config, {"optimizer.lrr": 1e-3})
    with pytest.raises(ConfigError, match=r"validation\.enable = None \(overrides\): no value of TOML"):
        titan_pt.run(config, {"validation.enable": None})
    with pytest.raises(ConfigError, match="quickstart"):
        titan_pt.run("quickstrat")
    metrics = tmp_path / "run" / "metrics.jsonl"

    def interrupt() -> None:
        while not (metrics.exists() and metrics.stat().st_size):
            done.wait(0.05)
        signal.raise_signal(signal.SIGINT)

    done = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        titan_pt.run(config)
    thread.join()
    last = max(losses(tmp_path / "run"))
    assert titan_pt.run(config, {"training.steps": last + 2})["step"] == last + 2
    tells = f"sh -c 'echo $TITAN_PT_CODE $TITAN_PT_REASON > {tmp_path}/why'"
    with pytest.raises(ConfigError, match=r"model\.num_layers"):
        titan_pt.run(config, {"model.num_layers": 3, "job.notify": tells})
    assert (tmp_path / "why").read_text().startswith("2 config error: ")


def test_the_run_folder_and_its_steps_say_what_made_them(tmp_path: Path) -> None:
    titan_pt.run(write_toml(tmp_path, training={"steps": 1}))
    for path in ("config.toml", "checkpoint/step-1/config.toml"):
        first = (tmp_path / "run" / path).read_text().splitlines()[0]
        assert first == f"# {made_by()}" and f"titan_pt {titan_pt.__version__}, commit " in first
    assert load_config([str(tmp_path / "run" / "config.toml")]).training.steps == 1


def test_the_module_stays_beside_the_function() -> None:
    from titan_pt import run, train
    from titan_pt.run import log

    assert callable(run) and log.logger.name == "titan_pt" and train.__name__ == "titan_pt.train"
    with pytest.raises(AttributeError, match="nothing"):
        titan_pt.nothing  # noqa: B018
