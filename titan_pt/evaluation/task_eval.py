"""Validation by tasks and sampled text: `validation.tasks` and `validation.sample_prompts`."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from titan_pt.config.errors import ConfigError
from titan_pt.evaluation.core_metric import CORE, CoreData, CoreEvaluator, open_core
from titan_pt.evaluation.eval_tasks import TaskRequest, open_eval_task
from titan_pt.evaluation.task_evaluator import EvalResult, build_task_evaluator
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
    measures: Sequence[Callable[[], EvalResult]]
    """One of each row of validation.tasks, by the weights of the engine's model."""
    texts: dict[str, str] = field(default_factory=dict)
    """Completions of validation.sample_prompts in the last validation, on rank 0."""

    def __call__(self) -> dict[str, float]:
        """All values by name. A collective: call it on all ranks."""
        options = self.context.config.validation
        values = self.inner()
        self.engine.sync_weights(self.context.model)
        for row, measure in zip(options.tasks, self.measures, strict=True):
            result = measure()
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
    opened = world.together(lambda: _open_tasks(context))
    engine = NativeEngine(model, stop_ids(tokenizer), stop_requested=stop_requested)
    evaluate = build_task_evaluator(
        [task for task in opened if isinstance(task, Task)],
        model,
        engine,
        tokenizer,
        world,
        max((row.max_new_tokens for row in options.tasks if row.name != CORE), default=1),
        stop_requested=stop_requested,
        raise_if_preempted=context.raise_if_preempted,
    )
    measures: list[Callable[[], EvalResult]] = []
    for row, task in zip(options.tasks, opened, strict=True):
        if not isinstance(task, Task):
            measures.append(CoreEvaluator(task, model, tokenizer, world, context.raise_if_preempted))
            continue
        measures.append(functools.partial(evaluate, evaluate.tasks.index(task), row.limit, row.max_new_tokens))
        logger.info(
            f"Validation: {min(row.limit, len(task.evaluation)):,} problems of {row.name}, {how_asked(task.chat)}, "
            "answered greedily"
        )
    return TaskEval(inner, context, engine, measures)


def _open_tasks(context: TrainContext) -> list[Task | CoreData]:
    talks = knows_chat(context.config.job.trainer, context.tokenizer, context.dataloader.identity())
    opened: list[Task | CoreData] = []
    for row in context.config.validation.tasks:
        # As the TOML writes it: opening a task replaces variables in its paths.
        request = TaskRequest(**row.model_dump(exclude={"limit", "max_new_tokens"}))
        if row.name == CORE:
            opened.append(open_core(request, row.limit, "validation.tasks"))
        else:
            opened.append(open_eval_task(request, 0, "validation.tasks", knows_chat=talks))
    return opened


def _tokens(context: TrainContext, prompt: str) -> list[int]:
    return prompt_tokens(context.tokenizer, prompt, named=True)
