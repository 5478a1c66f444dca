"""The order of prompts: shares, visits, what comes back, and going on from a state."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rl_plugin
from hf_helpers import write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments
from titan_pt.components.checkpoint.mismatch import describe
from titan_pt.components.checkpoint.resume import has_data_of
from titan_pt.components.tokenizer import ByteTokenizer, build_tokenizer
from titan_pt.config import ConfigError
from titan_pt.config.schema.grpo import Grpo, GrpoConfig, GrpoTask
from titan_pt.config.schema.job_config import TokenizerSection
from titan_pt.generation.sampling import Sampling
from titan_pt.run.exit_codes import GaveUpTogether
from titan_pt.trainers.grpo import prompts
from titan_pt.trainers.grpo.collect import collect
from titan_pt.trainers.grpo.prompts import Prompt, PromptLoader, PromptRules, build_prompts


def loader(
    weights: tuple[float, ...] = (3.0, 1.0), size: int = 7, longest: int = 200, overlong: str = "error", seed: int = 0
) -> PromptLoader:
    names = ("coin", "second_coin")
    tasks = [rl_plugin.make(GrpoTask(name=name, options={"size": size}), 0) for name in names[: len(weights)]]
    return PromptLoader(tasks, weights, PromptRules(ByteTokenizer(), longest, overlong), seed)


def names(prompts: list[Prompt]) -> list[str]:
    return [f"{prompt.problem.id} {prompt.draw}" for prompt in prompts]


def test_tasks_get_their_shares_of_prompts() -> None:
    prompts = loader().take(8 * 7)
    assert Counter(prompt.problem.task for prompt in prompts) == {"coin": 42, "second_coin": 14}
    for start in range(0, 40, 4):
        assert Counter(p.task for p in prompts[start : start + 4]) == {0: 3, 1: 1}, "at any time, not only in the end"
    own = [prompt for prompt in prompts if prompt.task == 0]
    visits = [[prompt.problem.id for prompt in own[i : i + 7]] for i in range(0, 42, 7)]
    assert all(sorted(visit) == sorted(visits[0]) and len(set(visit)) == 7 for visit in visits), "each problem once"
    assert len({tuple(visit) for visit in visits}) > 1, "in another order"
    assert own[8].problem.question.endswith("time 1."), "and told the visit"
    assert names(loader(seed=1).take(20)) != names(loader().take(20))


@settings(max_examples=50, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=8))
def test_a_restored_state_continues_exactly(moves: list[tuple[int, int, bool]]) -> None:
    one = loader()
    for take, back, commits in moves:
        taken = one.take(take)
        one.give_back(taken[len(taken) - min(back, take) :])
        if commits:
            one.commit([take, 0])
        else:
            one.rewind()
    one.rewind()
    other = loader()
    state: dict[str, Any] = json.loads(json.dumps(one.state_dict()))
    other.load_state_dict(state)
    assert other.progress() == one.progress()
    assert names(other.take(30)) == names(one.take(30))


def test_given_back_prompts_come_first() -> None:
    prompts = loader()
    taken = prompts.take(6)
    prompts.give_back(taken[4:])
    prompts.commit([10, 20])
    assert names(prompts.take(3))[:2] == names(taken[4:])
    assert prompts.progress() == {"coin": [10, 5 / 7], "second_coin": [20, 1 / 7]}, "of what is committed"


@pytest.mark.parametrize(("overlong", "count"), [("skip", 0), ("truncate", 30)])
def test_too_long_prompts_are_cut_or_skipped(overlong: str, count: int, caplog: pytest.LogCaptureFixture) -> None:
    text = loader().take(1)[0].text
    prompts = loader(longest=len(text) - 3, overlong=overlong, size=200)
    if overlong == "skip":
        with pytest.raises(ConfigError, match=r"grpo.tasks\[0\] \('coin'\): all training prompts are longer than"):
            prompts.check()
        return
    prompts.check()
    taken = prompts.take(30)
    assert prompts.too_long == 30 and len(taken) == count
    for prompt in taken:
        assert bytes(prompt.token_ids).decode() == prompt.text[-len(prompt.token_ids) :], "the end holds the question"


def test_skipped_prompts_are_counted() -> None:
    longest = max(len(prompt.token_ids) for prompt in loader(weights=(1.0,), size=40).take(40))
    prompts = loader(weights=(1.0,), size=40, overlong="skip", longest=longest - 1)
    taken = prompts.take(20)
    assert {prompt.problem.id for prompt in taken} == {f"coin/{i}" for i in range(10)}, "the numbers of one digit"
    assert 30 <= prompts.too_long <= 60, "three of four prompts"
    prompts.commit([20])
    found = prompts.too_long
    prompts.take(20)
    prompts.rewind()
    assert prompts.too_long == found, "those of a step that did not finish are read again"
    resumed = loader(weights=(1.0,), size=40, overlong="skip", longest=longest - 1)
    resumed.load_state_dict(json.loads(json.dumps(prompts.state_dict())))
    assert resumed.too_long == found


def test_an_overlong_prompt_is_refused_by_default() -> None:
    with pytest.raises(ConfigError, match=r"the prompt of coin/\d+ has \d+ tokens.*rollout.overlong_prompts"):
        loader(longest=20).check()


def test_evaluation_prompts_are_fixed() -> None:
    prompts = loader()
    assert len(prompts.evaluation(0, 100)) == 12
    few = prompts.evaluation(0, 5)
    assert len(few) == 5 and few == loader(seed=3).evaluation(0, 5)
    assert loader(seed=3).identity() != prompts.identity()
    changed = loader()
    changed.tasks[0] = replace(changed.tasks[0], template="{question}?")
    assert changed.identity() != prompts.identity()


def test_worked_answers_are_of_the_identity_and_unknown_to_older_checkpoints(tmp_path: Path) -> None:
    def built(solution: str) -> PromptLoader:
        (tmp_path / "set.jsonl").write_text(
            "".join(f'{{"question": "What is {i} + 1?", "answer": "{solution} #### {i + 1}"}}\n' for i in range(40))
        )
        config = GrpoConfig(
            job={"trainer": "grpo"},
            rollout={"max_new_tokens": 8},
            grpo={"tasks": [{"name": "gsm8k", "path": str(tmp_path / "set.jsonl"), "holdout_fraction": 0.2}]},
        )
        return build_prompts(config, ByteTokenizer(), speaks=True)

    one, other = built("One more."), built("Count on.")
    before = one.identity()
    assert other.identity()["tasks"] == before["tasks"], "as older checkpoints have it"
    assert has_data_of(built("One more."), {"identity": before})
    assert not has_data_of(other, {"identity": before})
    of_older = {name: value for name, value in before.items() if name != "solutions"}
    assert has_data_of(other, {"identity": of_older})
    (there,), (here,) = before["solutions"].values(), other.identity()["solutions"].values()
    told = describe({"data.solutions.gsm8k": (there, here)}, "", GrpoConfig(), None)
    assert told[0].startswith("the worked answers of task 'gsm8k', or what makes texts of them, are others now")


def test_a_run_asks_through_the_template_of_the_model_that_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on so; older checkpoints, of plain prompts, have the same identity as before."""
    write_model(tmp_path / "hf", qwen=False, tied=False)
    tokenizer = build_tokenizer(TokenizerSection(name=str(tmp_path / "hf")))

    def built(initial: str | None, name: str = "run", **task: Any) -> dict[str, Any]:
        config = GrpoConfig(
            job={"trainer": "grpo", "dump_folder": str(tmp_path / name)},
            checkpoint={"initial_load_path": initial},
            rollout={"max_new_tokens": 8},
            grpo={"tasks": [{"name": "arithmetic", **task}]},
        )
        return build_prompts(config, tokenizer, speaks=True).identity()

    plain = built(None)
    assert "chat" not in plain and "system_prompt" not in plain
    assert built(str(tmp_path / "hf")) == {**plain, "chat": {"arithmetic": True}}
    assert built(str(tmp_path / "hf"), chat=False) == plain == built(str(tmp_path / "missing"))
    assert built(None, chat=True, system_prompt="Be brief.") == {
        **plain,
        "chat": {"arithmetic": True},
        "system_prompt": {"arithmetic": "Be brief."},
    }
    monkeypatch.setattr(prompts, "has_steps", lambda config: True)
    monkeypatch.setattr(prompts, "find_resume", lambda folder, load_step: folder / "step-1")
    for identity in (plain, {**plain, "chat": {"arithmetic": True}}):
        monkeypatch.setattr(
            prompts, "load_documents", lambda step, saved=identity: CheckpointDocuments({}, {"identity": saved}, "")
        )
        assert built(str(tmp_path / "hf")) == identity, "a resume goes on as the run began"


def test_retired_problems_are_not_asked_again() -> None:
    one = loader((1.0,))
    first = one.take(7)
    one.retire(first[:6])
    one.commit([1])
    resumed = loader((1.0,))
    resumed.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for each in (one, resumed):
        assert each.num_retired == 6
        assert {prompt.problem.id for prompt in each.take(5)} == {first[6].problem.id}
    with pytest.raises(GaveUpTogether, match="all 7 problems were solved"):
        one.retire(first)
    one.rewind()
    assert one.num_retired == 6, "what a step retired goes with it where it did not end"
    assert "retired" not in loader().state_dict()["prompts"], "as in checkpoints of before"


def test_a_task_that_is_spent_leaves_its_turns_to_the_others() -> None:
    two = loader((100.0, 1.0))
    two.retire(prompt for prompt in two.take(750) if prompt.task == 0)
    assert two.num_retired == 7
    assert {prompt.task for prompt in two.take(300)} == {1}
    with pytest.raises(GaveUpTogether, match="all 14 problems were solved"):
        two.retire(two.take(14))


def test_a_filter_that_finds_nothing_takes_all_as_an_idle_step_does() -> None:
    groups = [SimpleNamespace(has_signal=False)] * 3
    sampler: Any = SimpleNamespace(sample=lambda *_: groups)
    for way, chosen in (("filter", [0, 1, 2]), ("none", [0, 1, 2]), ("refill", [])):
        options = Grpo(prompts_per_step=3, dynamic_sampling=way, max_gen_batches=1)  # type: ignore[arg-type]
        assert collect(loader(), sampler, Sampling(8), 2, options).chosen == chosen


@pytest.mark.parametrize(("way", "chosen"), [("filter", [1, 3]), ("none", [0, 1, 2, 3])])
def test_groups_of_equal_rewards_are_filtered_without_others_in_their_place(way: str, chosen: list[int]) -> None:
    groups = [SimpleNamespace(has_signal=number % 2 == 1) for number in range(4)]
    sampler: Any = SimpleNamespace(sample=lambda *_: groups)
    options = Grpo(prompts_per_step=4, dynamic_sampling=way)  # type: ignore[arg-type]
    assert collect(loader(), sampler, Sampling(8), 2, options).chosen == chosen
