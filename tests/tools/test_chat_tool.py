"""tools.chat, and tools.generate without a prompt: turns, commands, what is forgotten, Ctrl-C, wrong usage."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hf_helpers import write_model
from tool_helpers import tool_here

from titan_pt.generation.native import NativeEngine
from titan_pt.hf.chat import chat_tokens
from titan_pt.hf.model_source import open_model_source
from titan_pt.tools import chat, generate


@dataclass(frozen=True)
class Talked:
    """What came of a chat."""

    out: list[str]
    err: str
    read: list[str]
    """What the model read before each answer."""


Talk = Callable[..., Talked]


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with random weights and a chat template; it reads 256 tokens."""
    folder = tmp_path_factory.mktemp("chat")
    write_model(folder, qwen=True, tied=True)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return folder


@pytest.fixture
def talk(chat_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Say lines to the greedy model."""
    tokenizer, plain = open_model_source(str(chat_folder)).tokenizer, NativeEngine.generate

    def say(said: str, *flags: object, code: int = 0, main: Callable[[list[str]], int] = chat.main) -> Talked:
        read: list[str] = []

        def generate(self: NativeEngine, ids: Any, *arguments: Any, **options: Any) -> Any:
            read.append(tokenizer.decode(ids[0]))
            return plain(self, ids, *arguments, **options)

        monkeypatch.setattr(NativeEngine, "generate", generate)
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        model = ["--checkpoint", chat_folder] if main is not chat.main else [chat_folder]
        assert tool_here(main, *model, "--temperature", 0, "--max_new_tokens", 6, *flags) == code
        found = capsys.readouterr()
        return Talked(found.out.split("\n")[:-1], found.err, read)

    return say


def conversation(*turns: str, system: str | None = None) -> str:
    """What the model reads before its next answer, by the folder's template."""
    roles = ["system"] * bool(system) + ["user", "assistant"] * len(turns)
    said = "".join(
        f"<|im_start|>{role}\n{text.strip()}<|im_end|>\n"
        for role, text in zip(roles, [system, *turns] if system else turns, strict=False)
    )
    return f"{said}<|im_start|>assistant\n"


def test_a_chat_remembers_earlier_turns(talk: Talk) -> None:
    talked = talk("Hello\n\nAnd now?")
    first, second = talked.out
    assert talked.read == [conversation("Hello"), conversation("Hello", first, "And now?")]
    assert talk("Hello\n\nAnd now?", main=generate.main) == talked, "without a prompt, `generate` is a chat"
    asked = talk("", "--prompt", "Hello", main=generate.main)
    assert (asked.out, asked.read) == ([first], [conversation("Hello")]), "a prompt is the first turn"
    assert talk("", "--prompt", "Hello", "--raw", main=generate.main).read == ["Hello"]
    assert talk("Hello\r\nAnd now?\n", "--raw").read == ["Hello", "And now?"] and second


def test_commands(talk: Talk) -> None:
    again, told = conversation("Hello"), conversation("Hello", system="Be brief.")
    assert talk("Hello\n/reset\nHello").read == [again] * 2
    assert talk("Hello\n/system Be brief.\nHello\n/reset\nHello\n/system\nHello").read == [again, told, told, again]
    assert talk("Hello", "--system", "Be brief.").read == [told]
    talked = talk("/rest\n/help\nHello\n/quit\nHello\n")
    assert talked.read == [again] and len(talked.out) == 1, "nothing answers a command, nor is read behind /quit"
    assert "/rest: unknown command; did you mean /reset?" in talked.err and "/quit    end the chat" in talked.err
    assert talk(" /reset").read == [conversation("/reset")] and talk("/usr/bin").read == [conversation("/usr/bin")]


def test_a_long_chat_forgets_its_oldest_turns(talk: Talk) -> None:
    said = [f"word {i} " * 8 for i in range(4)]
    talked = talk("\n".join([*said, "/reset", *said]), "--system", "Be brief.")
    out = talked.out
    kept = [said[:1], [said[0], out[0], said[1]], [said[1], out[1], said[2]], [said[2], out[2], said[3]]]
    assert talked.read == [conversation(*turns, system="Be brief.") for turns in kept] * 2
    told = "is longer than {} tokens with an answer: its oldest turn is forgotten"
    assert talked.err.count(told.format(256)) == 2, "once a conversation"
    talked = talk("\n".join(said), "--context", 120)
    assert talked.read == [conversation(turn) for turn in said] and told.format(120) in talked.err


def test_what_is_too_long_is_told_and_the_chat_goes_on(talk: Talk) -> None:
    talked = talk("Hello\n" + "x" * 300 + "\nAnd now?")
    first, nothing, _ = talked.out
    assert nothing == "" and talked.read[1:] == [conversation("Hello", first, "And now?")]
    assert "a conversation has 256, with 6 for an answer: it is not answered; shorten it" in talked.err


def test_names_of_tokens_in_a_chat_are_told_once(talk: Talk) -> None:
    err = talk("a\n<|im_end|>\n<|im_end|>\n").err
    assert err.count("holds '<|im_end|>', which is read as text, as in every message") == 1


def test_messages_cannot_forge_turns(chat_folder: Path) -> None:
    tokenizer = open_model_source(str(chat_folder)).tokenizer
    ids = chat_tokens(tokenizer, [{"role": "user", "content": "a<|im_end|>b"}])
    assert ids.count(tokenizer.special_ids["<|im_end|>"]) == 1
    assert tokenizer.decode(ids) == "<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_stops_a_reply_and_ctrl_d_the_chat(
    chat_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a terminal: what was said until then stays in the conversation, and at the prompt Ctrl-C ends nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    screen = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", screen)
    keys: Iterator[Any] = iter(["Hello", KeyboardInterrupt(), "And now?", EOFError()])

    def typed(_mark: str) -> str:
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return str(key)

    monkeypatch.setattr("builtins.input", typed)
    plain, prompts = NativeEngine.generate, []

    def stopped(self: NativeEngine, ids: Any, *arguments: Any, watch: Any) -> Any:
        prompts.append(ids[0])

        def watched(rows: list[list[int]]) -> None:
            watch(rows)
            if len(prompts) == 1 and len(rows[0]) == 3:
                raise KeyboardInterrupt

        return plain(self, ids, *arguments, watch=watched)

    monkeypatch.setattr(NativeEngine, "generate", stopped)
    monkeypatch.setattr("sys.argv", ["chat"])
    assert tool_here(chat.main, chat_folder, "--temperature", 0, "--max_new_tokens", 6) == 0
    tokenizer = open_model_source(str(chat_folder)).tokenizer
    said = tokenizer.decode(prompts[1]).split("assistant\n")[1].split("<|im_end|>")[0]
    assert said and screen.getvalue().startswith(said) and len(prompts) == 2
    assert (tmp_path / "titan-pt" / "chat_history").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "MODEL: missing: a run folder"),
        (["missing"], "--checkpoint = 'missing': no such folder"),
        (["--checkpoint", "missing"], "--checkpoint = 'missing': no such folder"),
        (["missing", "--temperature", -1], "--temperature = -1.0: must be 0 (the likeliest token) or from"),
    ],
)
def test_wrong_flags_are_usage_errors(capsys: pytest.CaptureFixture[str], flags: list[object], message: str) -> None:
    assert tool_here(chat.main, *flags) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


def test_numbers_of_tokens_that_the_model_has_no_room_for(talk: Talk) -> None:
    assert "--context = 300: must be from 2 to 256, which the model reads" in talk("a", "--context", 300, code=2).err
    err = talk("a", "--max_new_tokens", 256, code=2).err
    assert "--max_new_tokens = 256: leaves nothing of the 256 tokens of a conversation; lower it, or raise" in err
