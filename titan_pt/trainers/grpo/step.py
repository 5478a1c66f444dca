"""One step of GRPO: prompts, completions, rewards, advantages, and the updates on them."""

import functools
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.generation.engine import RolloutEngine
from titan_pt.generation.sampling import rollout_sampling
from titan_pt.protocols.context import StepMetrics, TrainContext, TrainState
from titan_pt.run.exit_codes import GaveUpTogether
from titan_pt.run.run_folder import run_folder
from titan_pt.tasks.rollouts import Group, RolloutSampler, Timing
from titan_pt.tasks.task import Task
from titan_pt.trainers.grpo.advantages import group_advantages
from titan_pt.trainers.grpo.collapse import HeldOutWatch
from titan_pt.trainers.grpo.collect import Collected, collect
from titan_pt.trainers.grpo.evaluate import build_evaluator
from titan_pt.trainers.grpo.packing import TrainSample
from titan_pt.trainers.grpo.policy import PolicyUpdate, UpdateMetrics
from titan_pt.trainers.grpo.probe import probe, readiness
from titan_pt.trainers.grpo.prompts import PromptLoader
from titan_pt.trainers.grpo.reference import Reference
from titan_pt.trainers.grpo.rollout_log import RolloutLog, shown

if TYPE_CHECKING:
    from titan_pt.trainers.grpo.distill import TeacherModel

logger = logging.getLogger("titan_pt")


class GrpoStep:
    """A `StatefulStep` of GRPO; its own state is the reference, the watch and a count of idle steps."""

    def __init__(
        self,
        context: TrainContext[GrpoConfig],
        engine: RolloutEngine,
        sampler: RolloutSampler,
        reference: Reference | None,
        teacher: "TeacherModel | None" = None,
    ) -> None:
        self.engine, self.sampler, self.reference, self._teacher = engine, sampler, reference, teacher
        self.evaluator = build_evaluator(context, sampler)
        self.watch = HeldOutWatch(context.config, context.run_size.steps)
        self._context = context
        self._grpo, self._rollout = context.config.grpo, context.config.rollout
        self._prompts: PromptLoader = context.dataloader
        self._update = PolicyUpdate(context, reference.model if reference else None, teacher)
        frequency = self._rollout.record_freq if context.world.is_main else 0
        self._rollout_log = RolloutLog(run_folder(context.config), frequency)
        self._idle_steps = 0

    def __call__(self, state: TrainState) -> StepMetrics:
        """Sample, grade and update once.

        Raises:
            Preempted: before the weights change; the step leaves no trace.
            GaveUp, GaveUpTogether: there is nothing to learn from, or the run has collapsed.
            GoBack: it has collapsed, and grpo.on_collapse is "rewind".
        """
        self.watch.answer(state)
        self._prompts.rewind()  # a step before may not have finished
        sampling = rollout_sampling(self._context.config, state.step + 1)
        if self.reference:
            self.reference.renew_if_due(state.step)
        sync_seconds = self._sync()
        if state.step == 0:
            probe(self._context, self.evaluator, rollout_sampling(self._context.config, 0), self._rollout_log)
        self.sampler.timing = Timing()
        collected = collect(self._prompts, self.sampler, sampling, self._rollout.num_samples, self._grpo)
        if rate := self._grpo.retire_pass_rate:
            self._prompts.retire(group.prompt for group in collected.groups if group.pass_rate >= rate)
        idle_steps = self._give_up_if_idle(state.step + 1, collected)
        rewards = torch.tensor([group.rewards for group in collected.trained], dtype=torch.float64)
        weight = self._teacher.options.reward_coef if self._teacher else 1.0
        advantages = (weight * group_advantages(rewards, self._grpo.advantage_scale)).tolist()
        lr = self._context.schedule(state.step + 1) * state.guard.get("rate_factor", 1.0)
        start = time.perf_counter()
        minibatches = self._minibatches(collected.trained, advantages)
        updated = self._update(minibatches, lr)
        float(updated.loss)  # waits for the device, so that the time is the updates'
        seconds = {"sync": sync_seconds, "train": time.perf_counter() - start}
        self._record(state.step + 1, collected, advantages)
        tokens = tokens_by_task(collected.trained, len(self._prompts.tasks), self._grpo.num_iterations)
        self._prompts.commit(tokens)
        self._idle_steps = idle_steps
        metrics = self._metrics(state.step + 1, collected, updated, lr, sum(tokens), seconds)
        if collapses := state.guard.get("collapses"):
            metrics = replace(metrics, extra={**metrics.extra, "collapses": float(len(collapses))})
        self.watch.note_step(state.step + 1, metrics.extra)
        return replace(metrics, again=functools.partial(self._update.again, minibatches))

    def _prints(self, step: int) -> bool:
        """Whether samples of this step are printed, if it is logged: rollout.print_freq steps have gone by."""
        freq = self._rollout.print_freq
        return step == 1 or step // freq > (step - self._context.config.metrics.log_freq) // freq

    def _metrics(
        self,
        step: int,
        collected: Collected,
        updated: UpdateMetrics,
        lr: float,
        tokens: int,
        seconds: Mapping[str, float],
    ) -> StepMetrics:
        timing, shows = self.sampler.timing, self._rollout.print_samples if self._prints(step) else 0
        seconds = {**seconds, "rollout": timing.rollout_seconds, "reward": timing.reward_seconds}
        return StepMetrics(
            loss=updated.loss,
            grad_norm=updated.grad_norm,
            skipped=updated.skipped,
            lr=lr,
            tokens=tokens,
            data_seconds=timing.rollout_seconds + timing.reward_seconds,
            documents=tuple(group.prompt.problem.id for group in collected.trained),
            extra={
                **sample_metrics(collected, self._prompts.tasks),
                **update_metrics(updated),
                "prompts_too_long": float(self._prompts.too_long),
                **({"problems_retired": float(retired)} if (retired := self._prompts.num_retired) else {}),
                **{f"reward_{kind}s": float(timing.faults[kind]) for kind in ("error", "timeout", "nan")},
                "rollout_tokens_per_second": timing.tokens / max(timing.rollout_seconds, 1e-9),
                **{f"seconds/{name}": value for name, value in seconds.items()},
            },
            texts={"samples": shown(collected.groups, shows)} if shows else {},
        )

    def end(self, state: TrainState) -> None:
        """Answer a collapse that the last evaluation found.

        Raises:
            GaveUpTogether: grpo.on_collapse is "stop".
        """
        self.watch.end(state)

    def close(self) -> None:
        """Write the rollouts that a failing disk kept back, and end the processes of environments."""
        self._rollout_log.record.close()
        self.sampler.close()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors of the reference for a checkpoint, by name."""
        if self.reference is None:
            return {}
        return {f"reference.{name}": tensor for name, tensor in self.reference.tensors().items()}

    def state_dict(self) -> dict[str, Any]:
        """The count of idle steps, the states of the reference and the watch, and whose student it is, as JSON."""
        reference = self.reference.state_dict() if self.reference else None
        state = {"idle_steps": self._idle_steps, "reference": reference, "watch": self.watch.state_dict()}
        return {**state, "teacher": self._teacher.fingerprint} if self._teacher else state

    def check_state(self, state: Mapping[str, Any], folder: Path) -> None:
        """Check that a checkpoint holds a reference where this run needs one, and is of this run's teacher.

        A run that takes a teacher or leaves it goes on, with a warning.

        Raises:
            ConfigError: it does not.
        """
        if self.reference and not state.get("reference"):
            raise ConfigError(
                f"{folder}: grpo.kl_coef is 0 there and {self._grpo.kl_coef:g} here, so that it holds no reference "
                "model; set grpo.kl_coef = 0, or start another run, with another job.dump_folder, from these weights: "
                f'checkpoint.initial_load_path = "{folder}"'
            )
        if bool(self._teacher) != ("teacher" in state):
            there, here = ("no", "one") if self._teacher else ("a", "none")
            logger.warning(
                f"{folder}: was trained with {there} teacher, and goes on with {here}: grpo.loss = {self._grpo.loss!r}"
            )
        if self._teacher and state.get("teacher", self._teacher.fingerprint) != self._teacher.fingerprint:
            raise ConfigError(
                f"{folder}: was taught by other weights, of fingerprint {state['teacher']}, than teacher.path "
                f"= {self._teacher.options.path!r}, {self._teacher.fingerprint}; set it back, or start another run, "
                f'with another job.dump_folder, from these weights: checkpoint.initial_load_path = "{folder}"'
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the state that `state_dict` gave."""
        self._idle_steps = state["idle_steps"]
        self.watch.load_state_dict(state.get("watch", {}))
        if self.reference and state["reference"]:
            self.reference.load_state_dict(state["reference"])

    def _sync(self) -> float:
        """Copy the weights to the engine; returns the seconds."""
        start = time.perf_counter()
        self.engine.sync_weights(self._context.model)
        return time.perf_counter() - start

    def _give_up_if_idle(self, step: int, collected: Collected) -> int:
        """The number of steps in a row, this one included, without any group to learn from.

        Raises:
            GaveUpTogether: there are too many such steps; the last samples are recorded.
        """
        if self._grpo.has_teacher or any(group.has_signal for group in collected.trained):
            return 0
        idle_steps = self._idle_steps + 1
        limit = 1 if self._grpo.dynamic_sampling == "refill" else self._grpo.max_idle_steps
        if idle_steps < limit:
            return idle_steps
        self._record(step, collected, [])
        found = readiness(collected.groups)
        raise GaveUpTogether(
            f"step {step}: none of {len(collected.groups)} groups has different rewards, {idle_steps} steps in a "
            f"row (pass rate {found.pass_rate:.2%}, cut off {found.truncated:.2%}); "
            f"{self.sampler.timing.broken_rewards() or found.advice}"
        )

    def _minibatches(self, groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> list[list[TrainSample]]:
        """The samples of the groups in grpo.num_minibatches equal parts, or one part a group where there are fewer."""
        samples = [
            [
                TrainSample(group.prompt.token_ids, each.token_ids, each.logprobs, advantage, each.trains, each.sampled)
                for each, advantage in zip(group.completions, of_group, strict=True)
            ]
            for group, of_group in zip(groups, advantages, strict=True)
        ]
        parts = min(self._grpo.num_minibatches, len(samples))
        bounds = [len(samples) * i // parts for i in range(parts + 1)]
        return [
            [sample for group in samples[start:end] for sample in group] for start, end in itertools.pairwise(bounds)
        ]

    def _record(self, step: int, collected: Collected, advantages: Sequence[Sequence[float]]) -> None:
        """Write the completions of a step; without advantages where it is not trained on."""
        self._rollout_log.write(step, collected.groups, dict(zip(collected.chosen, advantages, strict=False)))


def tokens_by_task(groups: Sequence[Group], num_tasks: int, times: int) -> list[int]:
    """Prompt and completion tokens of each task, where each is read `times` times."""
    tokens = [0] * num_tasks
    for group in groups:
        tokens[group.prompt.task] += times * sum(
            len(group.prompt.token_ids) + len(completion.token_ids) for completion in group.completions
        )
    return tokens


def sample_metrics(collected: Collected, tasks: Sequence[Task]) -> dict[str, float]:
    """Means over all sampled groups; with several tasks also over those of each."""
    values = group_metrics(collected.groups)
    values["groups_sampled"], values["groups_trained"] = float(len(collected.groups)), float(len(collected.chosen))
    if len(tasks) > 1:
        for t, task in enumerate(tasks):
            groups = [group for group in collected.groups if group.prompt.task == t]
            found = group_metrics(groups) if groups else {}
            values |= {f"task/{task.name}/{key}": value for key, value in found.items()}
    return values


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the groups' completions."""
    completions = [completion for group in groups for completion in group.completions]
    count = len(completions)
    rewards = torch.tensor([completion.reward for completion in completions], dtype=torch.float64)
    played = [completion for completion in completions if completion.turns]
    parts = sorted({name for completion in completions for name in completion.parts})
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "accuracy_strict": sum(completion.strict for completion in completions) / count,
        "accuracy_lenient": sum(completion.lenient for completion in completions) / count,
        "zero_std_fraction": sum(not group.has_signal for group in groups) / len(groups),
        "completion_tokens_mean": sum(completion.num_sampled for completion in completions) / count,
        **({"turns_mean": _mean([len(each.turns) for each in played])} if played else {}),
        "truncated_fraction": sum(completion.truncated for completion in completions) / count,
        **{f"reward/{name}": _mean([each.parts[name] for each in completions if name in each.parts]) for name in parts},
    }


def update_metrics(updated: UpdateMetrics) -> Mapping[str, torch.Tensor]:
    """Metrics of the updates beside loss and gradient norm, by name."""
    return {
        "entropy": updated.entropy,
        "clip_fraction": updated.clip_fraction,
        "kl": updated.kl,
        "ratio_max": updated.ratio_max,
        **({} if updated.teacher_kl is None else {"teacher_kl": updated.teacher_kl}),
        "logprob_diff_max": updated.logprob_diff_max,
        "logprob_diff_mean": updated.logprob_diff_mean,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
