"""Validation by tasks and sampled text: `validation.tasks` and `validation.sample_prompts`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from titan_pt.config.errors import ConfigError
from titan_pt.evaluation.eval_tasks import TaskRequest, open_eval_task
from titan_pt.evaluation.task_evaluator import TaskEvaluator, build_task_evaluator
from titan_pt.generation.engine import GenerationStopped, NonFiniteLogits
from titan_pt.generation.native import NativeEngine, unsharded_model
from titan_pt.generation.sampling import Sampling
from titan_pt.hf.chat import knows_chat, prompt_tokens, stop_ids
from titan_pt.protocols.context import TrainContext, Validator
from titan_pt.run.signals import stop_requested
from titan_pt.tasks.task import Task, how_asked

logger = logging.getLogger("titan_pt")


@dataclass(frozen=True)
class TaskEval:
    """A `Validator` that adds eval/<task>/<value> of each task, and samples, to the values of another one.

    It holds an unsharded copy of the model, in the type that the training computes in.
    """

    inner: Validator
    context: TrainContext
    engine: NativeEngine
    evaluator: TaskEvaluator
    texts: dict[str, str] = field(default_factory=dict)
    """Completions of validation.sample_prompts in the last validation, on rank 0."""

    def __call__(self) -> dict[str, float]:
        """All values by name. A collective: call it on all ranks."""
        options = self.context.config.validation
        values = self.inner()
        self.engine.sync_weights(self.context.model)
        for t, row in enumerate(options.tasks):
            result = self.evaluator(t, row.limit, row.max_new_tokens)
            found = {**result.values, "problems": result.problems}
            values |= {f"eval/{row.name}/{name}": value for name, value in found.items()}
        if options.sample_prompts:
            self._sample(options.sample_prompts, Sampling(options.sample_tokens, temperature=0.0))
        return values

    def _sample(self, prompts: Sequence[str], sampling: Sampling) -> None:
        """On rank 0: continue the prompts; on all: raise NonFiniteLogits where it cannot."""
        world, problem = self.context.world, None
        try:
            if world.is_main:
                self._continue(prompts, sampling)
        except GenerationStopped:  # the next step tells all ranks
            pass
        except NonFiniteLogits as error:
            problem = error
        if problem := world.broadcast(problem):
            raise problem

    def _continue(self, prompts: Sequence[str], sampling: Sampling) -> None:
        completions = self.engine.generate([_tokens(self.context, prompt) for prompt in prompts], sampling, 1)
        decode = self.context.tokenizer.decode
        shown = (f"{p}\n--> {decode(c.token_ids)}" for p, c in zip(prompts, completions, strict=True))
        self.texts["validation_samples"] = "\n\n".join(shown)


def build_task_eval(context: TrainContext, inner: Validator) -> TaskEval:
    """The validator of `[validation]` with its tasks and samples.

    Args:
        inner: the validator of the loss.

    Raises:
        ConfigError: a task's problems cannot be read, a prompt leaves no room, or the model is no transformer.
    """
    options, tokenizer, world = context.config.validation, context.tokenizer, context.world
    model = unsharded_model(context.config, tokenizer, world.device)
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
    tasks = world.together(lambda: _open_tasks(context))
    engine = NativeEngine(model, stop_ids(tokenizer), stop_requested=stop_requested)
    evaluator = build_task_evaluator(
        tasks,
        model,
        engine,
        tokenizer,
        world,
        max((row.max_new_tokens for row in options.tasks), default=1),
        stop_requested=stop_requested,
        raise_if_preempted=context.raise_if_preempted,
    )
    for row, task in zip(options.tasks, tasks, strict=True):
        logger.info(
            f"Validation: {min(row.limit, len(task.evaluation)):,} problems of {row.name}, {how_asked(task.chat)}, "
            "answered greedily"
        )
    return TaskEval(inner, context, engine, evaluator)


def _open_tasks(context: TrainContext) -> list[Task]:
    # As the TOML writes them: opening a task replaces variables in its paths.
    rows = (row.model_dump(exclude={"limit", "max_new_tokens"}) for row in context.config.validation.tasks)
    talks = knows_chat(context.config.job.trainer, context.tokenizer, context.dataloader.identity())
    return [open_eval_task(TaskRequest(**row), 0, "validation.tasks", knows_chat=talks) for row in rows]


def _tokens(context: TrainContext, prompt: str) -> list[int]:
    return prompt_tokens(context.tokenizer, prompt, named=True)
