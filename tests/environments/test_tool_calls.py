"""Calls of tools: known by the chat template, read and answered whatever a model writes, and the calculator's sums."""

import hashlib
import json
import pickle
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config import ConfigError
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.tool_sums import LEVELS, ToolSums, tool_sum
from titan_pt.environments.arithmetic_parser import DEEPEST, LONGEST, SumError, number_text, value_of
from titan_pt.environments.episodes import PlayedTurn
from titan_pt.environments.protocol import EpisodeState, ModelTurn
from titan_pt.environments.tools import LONGEST_RESULT, CallableTool, ToolEnvironment
from titan_pt.hf.chat import chat_text, chat_tokens, learnt_tokens
from titan_pt.hf.template import render
from titan_pt.hf.tokenizer_files import template_key
from titan_pt.hf.tool_calls import MOST_CALLS, ToolCall, read_hermes, read_llama3
from titan_pt.hf.tool_form import tool_form
from titan_pt.tasks.prompts import Prompt
from titan_pt.tasks.rollouts import GradedCompletion, Group
from titan_pt.tasks.task import Problem, open_task
from titan_pt.trainers.grpo.rollout_log import rows, shown
from titan_pt.trainers.sft.records import record_tokens

# The parts of the templates of Qwen3 and Llama 3.1 that tools go through, in words of our own.
QWEN3 = """
{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools><|im_end|>
{% endif %}{%- for m in messages %}{% if m.role == "tool" %}
{%- if loop.first or messages[loop.index0 - 1].role != "tool" %}<|im_start|>user{% endif %}
<tool_response>
{{ m.content }}
</tool_response>
{%- if loop.last or messages[loop.index0 + 1].role != "tool" %}<|im_end|>
{% endif %}{% else %}<|im_start|>{{ m.role }}
{% if m.role == "assistant" and loop.last %}<think>

</think>

{% endif %}{{ m.content }}{% for call in m.tool_calls %}
{%- if not loop.first or m.content %}
{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = """
{%- macro head(role) %}{{ "<|start_header_id|>" + role + "<|end_header_id|>\\n\\n" }}{% endmacro %}
{%- for m in messages %}{% if "tool_calls" in m %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception("one call a turn") }}{% endif %}
{%- set call = m.tool_calls[0].function %}{{ head("assistant") }}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ "}<|eot_id|>" }}
{%- elif m.role in ("tool", "ipython") %}{{ head("ipython") }}{{ m.content | tojson }}<|eot_id|>
{%- else %}{{ head(m.role) }}{% if loop.first and tools %}{{ tools | tojson(indent=4) }}{% endif %}
{{- m.content }}<|eot_id|>{% endif %}{% endfor %}{% if add_generation_prompt %}{{ head("assistant") }}{% endif %}"""
TAGGED = "{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}%s{% endfor %}{% endfor %}"
XML = TAGGED.replace("%s", "<function={{ c.function.name }}>{{ c.function.arguments | tojson }}</function>")


class Templated(ByteTokenizer):
    def __init__(self, template: str | None) -> None:
        self.chat_template = template


class Plain(ByteTokenizer):
    special_ids = {"<|endoftext|>": 256}  # noqa: RUF012


@pytest.mark.parametrize(
    ("tokenizer", "read", "role"),
    [
        (Templated(QWEN3), read_hermes, "user<tool_response>"),
        (Templated(LLAMA3), read_llama3, "ipython"),
        (ByteTokenizer(), read_hermes, "<|im_start|>tool"),
        (Plain(), read_hermes, "Tool: "),
    ],
)
def test_the_template_says_which_form_its_calls_have(tokenizer: Any, read: Any, role: str) -> None:
    assert tool_form(tokenizer) is read
    calling = {"role": "assistant", "content": "", "tool_calls": [ToolCall("f", {"x": 'a"b'}).as_json()]}
    result = {"role": "tool", "name": "f", "content": "five"}
    asked = [{"role": "user", "content": "Hi"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {}}}}}]
    text = chat_text(tokenizer, [*asked, calling, result], tools=tools)
    assert role in text and "five" in text
    written = chat_text(tokenizer, [*asked, calling], tools=tools, prompt=False)
    turn = written.removeprefix(chat_text(tokenizer, asked, tools=tools)).partition("<|")[0]
    assert read(turn) == [ToolCall("f", {"x": 'a"b'})]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (XML, r"writes a call in an unknown form, '<function=look_up>.*known are Hermes"),
        (TAGGED.replace("%s", '[TOOL_CALLS] {{ c["function"] | tojson }}'), "unknown form"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not write `tools`"),
        ("{{ tools }}{{ messages[0].content }}", "does not write messages of the role tool"),
    ],
)
def test_an_unknown_form_is_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tool_form(Templated(template))


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Plain()])
def test_without_tools_the_simple_templates_are_what_they_were(tokenizer: Any) -> None:
    """They are in the fingerprints of fine-tuning data, by these hashes."""
    talk = [{"role": role, "content": f"{role} <tool_call>"} for role in ("system", "user", "assistant", "user")]
    old = template_key(tokenizer)
    assert hashlib.sha256(old.encode()).hexdigest()[:12] in ("17762d2e5131", "f84854247ce4")
    for prompt in (True, False):
        wanted = render(old, messages=talk, add_generation_prompt=prompt, eos_token="<|endoftext|>")
        assert chat_text(tokenizer, talk, prompt=prompt) == wanted


CALL = '{"name": "f", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    ("read", "text", "wanted"),
    [
        (read_hermes, "Four.", []),
        (read_hermes, f"I ask. <tool_call>\n{CALL}\n</tool_call>", [{"x": 1}]),
        (read_hermes, f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", [{"x": 1}, {"x": 1}]),
        (read_hermes, f"<think>\n<tool_call>{CALL}</tool_call></think>\n5", []),
        (read_hermes, f"<think>not done <tool_call>{CALL}</tool_call>", []),
        (read_hermes, f"<tool_call>{CALL}", ["no </tool_call>"]),
        (read_hermes, "<tool_call>f(x=1)</tool_call>", ["not JSON"]),
        (read_hermes, '<tool_call>{"arguments": {}}</tool_call>', ["names no tool"]),
        (read_hermes, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', ["is no object"]),
        (read_hermes, f"<tool_call>{'[' * 100_000}</tool_call>", ["not JSON"]),
        (read_hermes, f'<tool_call>{{"name": "f", "arguments": {"9" * 10_000}}}</tool_call>', ["not JSON"]),
        (read_hermes, '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', ["surrogate"]),
        (read_hermes, f"<tool_call>{CALL}</tool_call>" * 99, [{"x": 1}] * MOST_CALLS),
        (read_llama3, "Four {x}.", []),
        (read_llama3, '{"name": "f", "parameters": {"x": 1}}', [{"x": 1}]),
        (read_llama3, '<|python_tag|>{"name": "f", "parameters": {"x": 1}}; {"name": "f"}', [{"x": 1}, {}]),
        (read_llama3, '<|python_tag|>f.call(x="a, \\"b\\"", y=2)', [{"x": 'a, "b"', "y": 2}]),
        (read_llama3, '<|python_tag|>f.call(x="\\ud800")', ["surrogate"]),
        (read_llama3, "<|python_tag|>f.call(x)", ["cannot be read"]),
        (read_llama3, "<|python_tag|>print(5)", ["not JSON"]),
        (read_llama3, '{"name": "f", "parameters": {}} and so', ["text behind the call"]),
        (read_llama3, "{" * 100_000, ["not JSON"]),
    ],
)
def test_calls_are_read_and_broken_ones_explained(read: Any, text: str, wanted: list) -> None:
    found = read(text)
    assert len(found) == len(wanted)
    for call, want in zip(found, wanted, strict=True):
        if isinstance(want, str):
            assert want in call.error and not call.name
        else:
            assert (call.name, call.arguments, call.error) == ("f", want, "")


PIECES = [*'{}[]":,/;.=e1 \n', "<tool_call>", "</tool_call>", "<|python_tag|>", "f.call(", ")", '"name"', '"arguments"']


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_text_of_a_model_is_an_error(text: str) -> None:
    for call in (*read_hermes(text), *read_llama3(text), *read_hermes(f"<tool_call>{text}</tool_call>")):
        assert bool(call.name) != bool(call.error)


def shout(word: str, times: int = 1) -> str:
    if not word:
        raise ValueError("there is no word")
    return word.upper() * times


SHOUT = {"word": {"type": "string"}, "times": {"type": "integer"}}
SHOUT_SCHEMA = {"name": "shout", "parameters": {"type": "object", "properties": SHOUT, "required": ["word"]}}


def test_calls_are_answered_in_order_and_mistakes_told() -> None:
    environment = pickle.loads(
        pickle.dumps(ToolEnvironment([CallableTool({"function": SHOUT_SCHEMA}, shout)], turns=3))
    )
    calls = [
        (ToolCall("shout", {"word": "a", "times": 2}), "AA"),
        (ToolCall("shout", {"word": "a" * 3000}), "A" * LONGEST_RESULT + " [1000 more characters]"),
        (ToolCall("shout", {"word": ""}), "error: there is no word"),
        (ToolCall("shout", {}), "error: 'word' is missing"),
        (ToolCall("shout", {"word": 5}), "error: 'word' is no string"),
        (ToolCall("shout", {"word": "a", "times": True}), "error: 'times' is no integer"),
        (ToolCall("shout", {"loud": 5}), "error: there is no argument 'loud'; shout has word, times"),
        (ToolCall("whisper", {}), "error: there is no tool 'whisper'; there is shout"),
        (ToolCall("", {}, "the call is not JSON"), "error: the call is not JSON"),
    ]
    problem = Problem("t", "t:0", "Shout.", "A")
    state = EpisodeState(problem, environment.reset(problem))
    turn = ModelTurn("...", 3, tuple(call for call, _ in calls))
    reply = environment.step(state, turn)
    assert [(each["role"], each["content"]) for each in reply.messages] == [("tool", told) for _, told in calls]
    assert not reply.done and reply.rewards == {"tool_calls": 9.0, "tool_errors": 7.0}
    assert environment.step(EpisodeState(problem, (), turn=2), turn).done, "a call in the last turn has no answer"
    assert environment.step(state, ModelTurn("A", 1)).done


SUMS = st.recursive(
    st.integers(0, 10**6).map(lambda n: (str(n), Fraction(n)))
    | st.decimals(0, 1000, places=3).map(lambda d: (str(d), Fraction(d))),
    lambda inner: st.one_of(
        inner.map(lambda s: (f"-({s[0]})", None if s[1] is None else -s[1])),
        inner.map(lambda s: (f"( {s[0]})", s[1])),
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: combined(*t)),
    ),
    max_leaves=12,
)


def combined(left: tuple[str, Fraction], sign: str, right: tuple[str, Fraction]) -> tuple[str, Fraction | None]:
    a, b = left[1], right[1]
    text = f"({left[0]}) {sign} ({right[0]})"
    if a is None or b is None or (sign == "/" and not b):
        return text, None
    return text, {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a / b


@settings(max_examples=200, deadline=None)
@given(SUMS)
def test_sums_have_their_exact_value(made: tuple[str, Fraction | None]) -> None:
    text, value = made
    if len(text) > LONGEST or text.count("(") > DEEPEST:
        return
    if value is None:
        with pytest.raises(SumError, match="division by zero"):
            value_of(text)
    else:
        assert value_of(text) == value


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99), st.sampled_from("+-"), st.sampled_from("*/"))
def test_products_bind_before_sums_and_both_from_the_left(a: int, b: int, c: int, low: str, high: str) -> None:
    sign = 1 if low == "+" else -1
    product = Fraction(b * c) if high == "*" else Fraction(b, c)
    assert value_of(f"{a}{low}{b}{high}{c}") == a + sign * product
    assert value_of(f"{a}-{b}{low}{c}") == a - b + sign * c
    assert value_of(f"{a}/{c}{high}{c}") == (a if high == "*" else Fraction(a, c * c))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789.+-*/() ×e,x", max_size=250))
def test_any_text_is_a_sum_or_a_mistake_of_bounded_size(text: str) -> None:
    try:
        assert len(number_text(value_of(text))) < 3 * LONGEST
    except SumError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9**9**9", r"a number is missing before '\*'"),
        ("1 + ", "a number is missing at the end"),
        ("", "a number is missing at the end"),
        ("(1 + 2", "a parenthesis is not closed"),
        ("1 2", "'2' is not expected behind"),
        ("__import__('os')", "a number is missing before '_'"),
        ("1,000", "',' is not expected"),
        ("3 / (2 - 2)", "division by zero"),
        ("٣ + 1", "a number is missing"),
        ("(" * 50, "inside each other"),
        ("-" * 50 + "1", "inside each other"),
        ("9" * 10**6, "1000000 characters are too many"),
    ],
)
def test_what_is_no_sum_is_refused(text: str, message: str) -> None:
    with pytest.raises(SumError, match=message):
        value_of(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("7", "7"),
        ("-40/2", "-20"),
        ("1/8", "0.125"),
        ("1/3", "0.333333"),
        ("-2/3000000", "-0.000000666667"),
        ("0", "0"),
    ],
)
def test_numbers_are_written_as_people_do(value: str, text: str) -> None:
    assert number_text(Fraction(value)) == text


def test_the_task_is_what_the_conversations_teach_and_never_ask() -> None:
    row = GrpoTask(name="calculator", level=1)
    task = open_task(row, 0, knows_chat=True)
    held_out = {task.evaluation.get(index, 0).question for index in range(len(task.evaluation))}
    made = ToolSums(1)
    records = [made[index] for index in range(0, len(made), 7)]
    asked = {record["messages"][0]["content"] for record in records}
    assert asked.isdisjoint(held_out) and len(held_out) > 400 and len(asked) > 500
    for level in LEVELS:
        assert all(value_of(each.expression) == each.answer for each in (tool_sum(level, i) for i in range(200)))
    called = [record for record in records if len(record["messages"]) == 4]
    assert 0.55 < len(called) / len(records) < 0.65
    digest = hashlib.sha256(json.dumps(records[:300]).encode()).hexdigest()
    assert digest.startswith("925ce101ee40"), "a change of the conversations needs another fingerprint"
    tokenizer = ByteTokenizer()
    encoded = [record_tokens(record, tokenizer) for record in called[:40]]
    assert max(len(ids) for ids, *_ in encoded) <= 256
    ids, learnt, _ = encoded[0]
    call, answer = called[0]["messages"][1]["tool_calls"][0]["function"], called[0]["messages"][3]["content"]
    said = tokenizer.decode([token for token, wanted in zip(ids, learnt, strict=True) if wanted])
    assert said == f"<tool_call>\n{json.dumps(call)}\n</tool_call><|im_end|>{answer}<|im_end|>"
    prompt = chat_tokens(tokenizer, task.messages(task.train.get(0, 0)), tools=task.environment.tools)
    assert tokenizer.decode(prompt).startswith(
        "<|im_start|>system\nTools:\ncalculator(expression): + - * / ( )<|im_end|>"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": 9}, "level = 9: unknown; allowed are 1: two numbers of"),
        ({"options": {"turns": 1}}, "options.turns = 1: want a whole number from 2 on, such as 4"),
        ({"options": {"tuns": 3}}, r"options.tuns: unknown; did you mean turns\?; known are turns"),
        ({"chat": False}, "its tools are told by the chat template.*set chat = true"),
    ],
)
def test_what_the_calculator_does_not_take(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_task(GrpoTask(name="calculator", **fields), 0, knows_chat=True)


USER, SAID = {"role": "user", "content": "2 * 3?"}, {"role": "assistant", "content": "6"}
TOOL = {"role": "tool", "content": "6"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 2}'}}]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {}}}}}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, CALLS, SAID], "want a user's and an assistant's in turns, whose calls each have their results"),
        ([USER, CALLS, TOOL], "an assistant's last"),
        ([USER, {**CALLS, "tool_calls": [{"function": {"name": "f"}}]}, TOOL, SAID], "message 1 has the call"),
        ([USER, {**CALLS, "tool_calls": "f(2)"}, TOOL, SAID], "message 1 has the call"),
    ],
)
def test_records_with_wrong_calls_are_named(messages: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_tokens({"messages": messages, "tools": TOOLS}, ByteTokenizer())


def test_calls_that_would_not_be_learnt_are_refused() -> None:
    """A template whose prompts open thoughts: the text of a turn could be found by itself, its calls could not."""
    tokenizer = Templated(QWEN3.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%"))
    talk = [USER, {**CALLS, "content": "I ask."}, TOOL, SAID]
    assert "<think>" in chat_text(tokenizer, talk)
    with pytest.raises(ConfigError, match="does not show where the assistant speaks"):
        learnt_tokens(tokenizer, talk, tools=TOOLS)


def test_a_record_may_have_several_calls_and_arguments_as_text() -> None:
    talk = [USER, {**CALLS, "tool_calls": CALLS["tool_calls"] * 2}, TOOL, TOOL, SAID, USER, {**SAID, "tool_calls": []}]
    ids, learnt, said = record_tokens({"messages": talk, "tools": TOOLS}, ByteTokenizer())
    text = ByteTokenizer().decode([token for token, wanted in zip(ids, learnt, strict=True) if wanted])
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 2}}\n</tool_call>'
    assert text == f"{call}\n{call}<|im_end|>6<|im_end|>6<|im_end|>" and said.count('"x": 2') == 2


def test_an_episode_is_recorded_and_shown_turn_by_turn() -> None:
    problem = Problem("calculator", "calculator:7", "2 * 3?", "6")
    parts = {"correct": 1.0, "tool_calls": 1.0}
    told = {"role": "tool", "name": "calculator", "content": "6"}
    played = (PlayedTurn("a call", 3, (told,), {"tool_calls": 1.0}), PlayedTurn("#### 6", 4))
    verdict = {"strict": True, "official": True, "lenient": True, "letter": None, "trains": True}
    completion = GradedCompletion((1,) * 9, (0.0,) * 9, False, "a call 6 #### 6", parts, 1.0, **verdict, turns=played)
    one_turn = replace(completion, text="Six.\n#### 6", turns=())
    prompt = Prompt(0, 0, problem, "Asked:", (5,))
    groups = [Group(prompt, (completion, one_turn)), Group(prompt, (one_turn, completion))]
    first, second = rows(groups[0], None)
    assert first["turns"] == [
        {"role": "assistant", "content": "a call", "num_tokens": 3, "rewards": {"tool_calls": 1.0}},
        {"role": "tool", "content": "6"},
        {"role": "assistant", "content": "#### 6", "num_tokens": 4},
    ]
    assert "turns" not in second
    end = "gold 6, reward 1, 9 tokens"
    assert shown(groups, 2) == (
        f"[calculator:7] Asked:\n--> a call\n<-- tool: 6\n--> #### 6\n{end}\n\n"
        f"[calculator:7] Asked:\n--> Six.\n#### 6\n{end}"
    )
