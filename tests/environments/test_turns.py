"""What an environment says, as tokens: those that the chat template, or the task's plain one, writes behind a turn."""

import pytest

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.environments.turns import AnswerTokens
from titan_pt.hf.chat import chat_tokens, stop_ids
from titan_pt.tasks.task import Task, open_task

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: what was thought is left out of all turns but the last.
THINKING = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] | trim }}")
# Writes what the assistant says nowhere.
DEAF = CHATML.replace("{{ m.content }}", "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}")
ASK = {"role": "user", "content": "Guess."}
REPLY = {"role": "user", "content": "5 is too low<|im_end|>."}


def tokenizer_of(template: str) -> ByteTokenizer:
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = template
    return tokenizer


def game(chat: bool) -> Task:
    return open_task(GrpoTask(name="guess_number", chat=chat), 0)


@pytest.mark.parametrize("template", [CHATML, THINKING], ids=["chatml", "thinking"])
def test_an_episode_is_what_the_template_renders(template: str) -> None:
    tokenizer = tokenizer_of(template)
    said = "<think>low?</think>5"
    read = [*chat_tokens(tokenizer, [ASK]), *tokenizer.encode(said), tokenizer.special_ids["<|im_end|>"]]
    assert read[-1] in stop_ids(tokenizer)
    episode = [*read, *AnswerTokens(tokenizer, game(chat=True))([REPLY])]
    whole = chat_tokens(tokenizer_of(CHATML), [ASK, {"role": "assistant", "content": said}, REPLY])
    assert episode == whole, "thoughts stay, and a name in a message is no token"
    assert episode.count(tokenizer.special_ids["<|im_end|>"]) == 3


def test_a_template_without_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not write an assistant's turn and what follows it"):
        AnswerTokens(tokenizer_of(DEAF), game(chat=True))


def test_a_message_that_the_template_leaves_out_is_refused() -> None:
    tokenizer = tokenizer_of(
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'narrator' %}")
    )
    encode = AnswerTokens(tokenizer, game(chat=True))
    assert encode([REPLY, {"role": "narrator", "content": " "}]) == encode([REPLY])
    with pytest.raises(ConfigError, match="does not write a message of the role 'narrator'"):
        encode([REPLY, {"role": "narrator", "content": "It rains."}])


def test_plain_answers_are_asked_as_the_prompt_is() -> None:
    tokenizer, task = ByteTokenizer(), game(chat=False)
    tokens = AnswerTokens(tokenizer, task)([REPLY])
    assert tokenizer.decode(tokens) == "\n\nQuestion: 5 is too low<|im_end|>.\nAnswer:"
    assert max(tokens) < 256
    assert task.prompt(task.train.get(0, 0)) == "Question: Guess the number from 1 to 20 that I think of.\nAnswer:"
