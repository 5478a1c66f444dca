"""titan_pt in a script or a notebook: `titan_pt.run` trains, `titan_pt.load` opens a model, any number of times."""

import argparse
import contextlib
import functools
import logging
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.config.schema.job_config import JobConfig

if TYPE_CHECKING:
    from titan_pt.hf.chat import Message
    from titan_pt.tools.model import OpenModel


_DTYPES = ("float32", "bfloat16", "float16")
_FLAG = re.compile(r"--(\w+)\b(?![.-])")
"""A tool's flag in a message; those of config keys have dots."""


class LoadedModel:
    """A model in memory, of a run or of a Hugging Face folder."""

    def __init__(self, opened: "OpenModel") -> None:
        self._opened = opened

    def generate(self, text: "str | Sequence[Message]", **options: Any) -> str:
        """Answer or continue a text, or a conversation of `{"role": ..., "content": ...}`.

        A text is the first turn of a conversation where the model was trained on such.

        Args:
            options: as of `generate_batch`, without `num_samples`.
        """
        if "num_samples" in options:
            raise ConfigError("num_samples: generate gives one text; generate_batch([text], num_samples=...) several")
        ((answer,),) = self.generate_batch([text], **options)
        return answer

    def generate_batch(
        self,
        texts: "Sequence[str | Sequence[Message]]",
        *,
        num_samples: int = 1,
        max_new_tokens: int | None = None,
        temperature: float = 0.8,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 42,
        raw: bool = False,
        special_tokens: bool = False,
    ) -> list[list[str]]:
        """The samples of each text, in their order.

        Args:
            max_new_tokens: most tokens of a sample; None: 256, or what the model has room for.
            temperature: 0 takes the likeliest token.
            seed: the same one gives the same samples.
            raw: continue a text as it is, without the chat template.
            special_tokens: names of special tokens in the texts are these tokens.

        Raises:
            ConfigError: an option or a text of a wrong kind or out of its range, or a text that leaves no room.
        """
        from titan_pt.tools.model import sampling, sampling_problems
        from titan_pt.tools.texts import new_tokens, prompt_ids, text_of

        if isinstance(texts, str):
            raise ConfigError("texts: must be a list of texts or conversations; generate takes one")
        for number, text in enumerate(texts, 1):
            _check_text(f"text {number}", text)
        if not texts:
            return []
        arguments = argparse.Namespace(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            num_samples=num_samples,
        )
        kinds = {name: Real if name in ("temperature", "top_p") else Integral for name in vars(arguments)}
        given = {
            name: value for name, value in vars(arguments).items() if name != "max_new_tokens" or value is not None
        }
        if wrong := [
            name for name, value in given.items() if not isinstance(value, kinds[name]) or isinstance(value, bool)
        ]:
            raise ConfigError(*(f"{name} = {given[name]!r}: must be a number" for name in wrong))
        if problems := sampling_problems(arguments):
            raise ConfigError(*map(_of_python, problems))
        ids = [prompt_ids(self._opened, text, raw=raw, named=special_tokens) for text in texts]
        names = [f"text {number}" for number in range(1, len(ids) + 1)]
        with _python_names():
            chosen = sampling(arguments, new_tokens(self._opened, arguments, ids, names))
        made = self._opened.engine(chat=not raw).generate(ids, chosen, num_samples)
        answers = [text_of(self._opened, completion) for completion in made]
        return [answers[start : start + num_samples] for start in range(0, len(answers), num_samples)]


def load(
    path: str | Path,
    *,
    tokenizer: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    weights: str = "trained",
) -> LoadedModel:
    """Open a model.

    Args:
        path: a run folder (its newest whole step), its checkpoint folder, one step-N, or a Hugging Face folder.
        tokenizer: where the tokenizer of the run's config has moved.
        dtype: "float32", "bfloat16" or "float16"; None: bfloat16 on an accelerator, float32 on a CPU.
        quantize: "int8" or "int4": hold the weights of all blocks in fewer bits.
        weights: "trained", or "ema" for the average that a run with training.ema_decay keeps of them.

    Raises:
        ConfigError: there is no whole model, or an argument is none of these.
    """
    from titan_pt.tools.model import open_model

    for name, value, allowed in (("dtype", dtype, _DTYPES), ("quantize", quantize, ("int8", "int4"))):
        if value is not None and value not in allowed:
            raise ConfigError(f"{name} = {value!r}: must be one of {one_of(allowed)}, or None")
    if weights not in ("trained", "ema"):
        raise ConfigError(f"weights = {weights!r}: must be {one_of(('trained', 'ema'))}")
    if not isinstance(path, str | Path):
        raise ConfigError(f"path = {path!r}: must be a text or a Path")
    flags = argparse.Namespace(
        checkpoint=str(path), tokenizer=tokenizer, dtype=dtype, quantize=quantize, weights=weights
    )
    with _python_names():
        return LoadedModel(open_model(flags))


def _check_text(name: str, text: Any) -> None:
    turns = [] if isinstance(text, str) else text if isinstance(text, Sequence) and text else [None]
    if not all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in turns):
        raise ConfigError(f'{name}: must be a text, or a conversation of {{"role": ..., "content": ...}}')


@contextlib.contextmanager
def _python_names() -> Iterator[None]:
    """Speak of arguments where the tools speak of flags."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(*map(_of_python, error.problems)) from None


def _of_python(problem: str) -> str:
    return _FLAG.sub(lambda flag: "path" if flag[1] == "checkpoint" else flag[1], problem)


def run(config: str | Path | JobConfig, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train in this process; returns the last row of the run's metrics.jsonl.

    A run that is in its folder already goes on, as that of a command does; one that is done returns its row. The end is
    told as by a command too: on stderr, in log.txt of the run folder, and to `job.notify`.

    Args:
        config: a TOML file, a shipped name such as "quickstart", or a config.
        overrides: values by key, such as {"optimizer.lr": 1e-3}.

    Raises:
        ConfigError: every mistake in the config, in one go.
        KeyboardInterrupt: a signal stopped it, after it saved: the same call goes on.
        Stalled, GaveUp, CannotStart, RuntimeError: it failed.
    """
    from titan_pt.config.manager import load_config
    from titan_pt.run.ending import exit_code_of
    from titan_pt.run.exit_codes import ExitCode, Stalled
    from titan_pt.run.own_json import whole_rows
    from titan_pt.run.run_folder import METRICS_FILE, run_folder
    from titan_pt.run.signals import signalled
    from titan_pt.train import run as train

    failures: list[BaseException] = []

    def attempt(config: JobConfig) -> ExitCode:
        try:
            return train(config, time.monotonic())
        except (Exception, GeneratorExit) as error:
            failures.append(error)
            raise

    with _as_toml(config) as file, _own_signals_and_console():
        if not isinstance(config, JobConfig) or overrides:
            config = load_config([f"--job.config_file={file}", *_flags(overrides or {})])
        code = exit_code_of(functools.partial(attempt, config))
        if failures:
            raise failures[0]
        if code != ExitCode.DONE:
            if signalled():
                raise KeyboardInterrupt("a signal stopped the run; the same call goes on from its last checkpoint")
            raise Stalled("no data came for too long; the same call goes on from the last checkpoint")
    rows = whole_rows(run_folder(config) / METRICS_FILE)  # of a dry run none
    return rows[-1] if rows else {}


@contextlib.contextmanager
def _as_toml(config: str | Path | JobConfig) -> Iterator[str]:
    """The name of a TOML file with this config."""
    if not isinstance(config, JobConfig):
        yield str(config)
        return
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(config.to_toml())
        file.flush()
        yield file.name


def _flags(overrides: Mapping[str, Any]) -> list[str]:
    from titan_pt.config.resolve.printing import literal

    flags = []
    for name, value in overrides.items():
        try:
            flags.append(f"--{name}={value if isinstance(value, str | Path) else literal(value)}")
        except TypeError:  # None too
            raise ConfigError(
                f"{name} = {value!r} (overrides): no value of TOML; leave it out for the default"
            ) from None
    return flags


@contextlib.contextmanager
def _own_signals_and_console() -> Iterator[None]:
    """Take signals and the console as a command does, and give both back. Only a main thread can take signals."""
    from titan_pt.run.log import init_logging, quiet_libraries
    from titan_pt.run.log_file import keep_log
    from titan_pt.run.signals import _SIGNALS, install_handlers, protect_progress

    log = logging.getLogger("titan_pt")
    before, streams = (log.handlers, log.level, log.propagate), (sys.stdout, sys.stderr)
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if is_main else {}
    try:
        init_logging()
        keep_log()
        quiet_libraries()
        with contextlib.suppress(ValueError):  # no main thread
            install_handlers()
        protect_progress()  # a second Ctrl-C would end the notebook
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        log.handlers, log.level, log.propagate = before
        if hasattr(sys.stderr, "end_live"):  # a terminal
            sys.stderr.end_live()
        sys.stdout, sys.stderr = streams
