"""`validation.tasks` and `validation.sample_prompts`: what the model can do already, at each validation."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import Grpo
from titan_pt.config.schema.job_config import ValidationTask
from titan_pt.evaluation.suite import ExamTask, Suite, build_suite, open_exam
from titan_pt.generation.engine import GenerationStopped
from titan_pt.generation.native import NativeEngine, unsharded_model
from titan_pt.generation.sampling import Sampling
from titan_pt.hf.chat import encode_with_special_tokens, stop_ids
from titan_pt.protocols.context import TrainContext, Validator
from titan_pt.run.signals import stop_requested
from titan_pt.tasks.rollouts import RolloutSampler

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class Exams:
    """A `Validator`: another one's values, and eval/<task>/<value> of each task; `texts` has the samples.

    It holds an unsharded copy of the model, in the type that the training computes in.
    """

    inner: Validator
    context: TrainContext
    engine: NativeEngine
    suite: Suite
    texts: dict[str, str] = field(default_factory=dict)
    """The samples of the last call, on rank 0."""

    def __call__(self) -> dict[str, float]:
        """A collective."""
        options = self.context.config.validation
        values = self.inner()
        self.engine.sync_weights(self.context.model)
        for t, row in enumerate(options.tasks):
            measured = self.suite(t, row.limit, row.max_new_tokens)
            values |= {f"eval/{row.name}/{name}": value for name, value in measured.values.items()}
        if self.context.world.is_main and options.sample_prompts:
            self._sample(options.sample_prompts, Sampling(options.sample_tokens, temperature=0.0))
        return values

    def _sample(self, prompts: Sequence[str], sampling: Sampling) -> None:
        try:
            completions = self.engine.generate([_tokens(self.context, prompt) for prompt in prompts], sampling, 1)
        except GenerationStopped:  # the next step tells all ranks
            return
        decode = self.context.tokenizer.decode
        shown = (f"{p}\n--> {decode(c.token_ids)}" for p, c in zip(prompts, completions, strict=True))
        self.texts["validation_samples"] = "\n\n".join(shown)


def build_exams(context: TrainContext, inner: Validator) -> Exams:
    """The validator of `[validation]` with its tasks and samples.

    Raises:
        ConfigError: a task's problems cannot be had, a prompt leaves no room, or the model is no transformer.
    """
    options = context.config.validation
    model = unsharded_model(context.config, context.tokenizer, context.world.device)
    if model is None:
        raise ConfigError(
            'validation.tasks, sample_prompts: need model.name = "transformer", not '
            f"{context.config.model.name!r}; leave them out"
        )
    longest = model.args.max_seq_len - options.sample_tokens
    for prompt in options.sample_prompts:
        if len(_tokens(context, prompt)) > longest:
            raise ConfigError(
                f"validation.sample_prompts: {prompt[:40]!r} and validation.sample_tokens = {options.sample_tokens} "
                f"are more than model.max_seq_len = {model.args.max_seq_len}"
            )
    tasks = context.world.together(lambda: [open_exam(_asked(row), 0, "validation.tasks") for row in options.tasks])
    engine = NativeEngine(model, stop_ids(context.tokenizer), stop_requested=stop_requested)
    sampler = RolloutSampler(
        engine,
        context.tokenizer,
        tasks,
        context.world,
        Grpo(),
        stop_requested=stop_requested,
        raise_if_preempted=context.raise_if_preempted,
    )
    new_tokens = max((row.max_new_tokens for row in options.tasks), default=1)
    suite = build_suite(tasks, sampler, model, context.tokenizer, context.world, new_tokens)
    for row, task in zip(options.tasks, tasks, strict=True):
        logger.info(f"Validation: {min(row.limit, len(task.evaluation)):,} problems of {row.name}, answered greedily")
    return Exams(inner, context, engine, suite)


def _asked(row: ValidationTask) -> ExamTask:
    return ExamTask(row.name, path=row.path, level=row.level)


def _tokens(context: TrainContext, prompt: str) -> list[int]:
    return encode_with_special_tokens(context.tokenizer, prompt)
