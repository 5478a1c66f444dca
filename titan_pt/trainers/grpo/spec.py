"""The trainer spec "grpo": reinforcement learning with verifiable rewards."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from titan_pt.components.lr_scheduler import build_lr_schedulers
from titan_pt.components.optimizer import build_optimizers
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import RunSize, plan_run_size
from titan_pt.config.schema.grpo import Grpo, GrpoConfig
from titan_pt.distributed.init import materialize
from titan_pt.distributed.world import World
from titan_pt.generation.engine import build_engine
from titan_pt.hf.chat import stop_ids
from titan_pt.protocols.context import Step, TrainContext, Validator
from titan_pt.protocols.registry import import_attribute
from titan_pt.protocols.trainer_spec import TrainerSpec
from titan_pt.run.log import say
from titan_pt.run.signals import stop_requested
from titan_pt.tasks.rollouts import GradingOptions, RolloutSampler
from titan_pt.tasks.task import Task, how_asked
from titan_pt.trainers import pretrain
from titan_pt.trainers.grpo.dry_run import WITHOUT_ADAPTERS, build_dry_run
from titan_pt.trainers.grpo.evaluate import GrpoValidator
from titan_pt.trainers.grpo.prompts import PromptLoader, build_prompts
from titan_pt.trainers.grpo.reference import Reference
from titan_pt.trainers.grpo.step import GrpoStep

if TYPE_CHECKING:
    from titan_pt.trainers.grpo.distill import TeacherModel

logger = logging.getLogger("titan_pt")


def for_rollouts(config: GrpoConfig) -> GrpoConfig:
    """The config with document masks, since completions share a row, and without a batch size, which counts groups."""
    training = {"document_mask": True, "global_batch_size": -1, "global_batch_tokens": None}
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def plan(config: GrpoConfig, world_size: int) -> RunSize:
    """The size of the run; rows and tokens are those of one micro-batch on every rank.

    Raises:
        ConfigError: there is no model at teacher.path.
    """
    training = config.training
    if training.global_batch_size > 0 or training.global_batch_tokens:
        logger.warning(
            "training.global_batch_size and global_batch_tokens have no effect on grpo; its batch is "
            "grpo.prompts_per_step x rollout.num_samples"
        )
    if config.grpo.has_teacher:
        from titan_pt.components.checkpoint.steps import find_initial

        find_initial(str(config.teacher.path), "teacher.path")  # before the tasks are read
    return plan_run_size(for_rollouts(config), world_size)


def build_model(config: GrpoConfig, tokenizer: Tokenizer) -> nn.Module:
    """The policy on the meta device, with the adapters of [lora] where they are on."""
    model = pretrain.build_model(for_rollouts(config), tokenizer)
    if config.lora.enable:
        import_attribute("titan_pt.lora.adapters:add_adapters")(model, config, config.lora)
    return model


def build_dataloader(config: GrpoConfig, tokenizer: Tokenizer, world: World, _run_size: RunSize) -> PromptLoader:
    """The prompt loader. Rank 0 reads the tasks' problems first, so that they are downloaded once.

    Raises:
        ConfigError: problems that cannot be read, or that differ between ranks.
    """
    first = world.together(lambda: build_prompts(config, tokenizer, speaks=True) if world.is_main else None)
    prompts = world.together(lambda: first or build_prompts(config, tokenizer, speaks=False))
    if len({str(identity) for identity in world.gather(prompts.identity())}) > 1:
        raise ConfigError("grpo.tasks: ranks find different problems; give all machines the same files")
    return prompts


def build_step(context: TrainContext[GrpoConfig]) -> GrpoStep:
    """The step with its engine and reference.

    Raises:
        ConfigError: a stop text that is not one token, or an engine that cannot run this model.
    """
    prompts: PromptLoader = context.dataloader
    stops = stop_tokens(context.tokenizer, prompts.tasks)
    engine = build_engine(context.config, context.tokenizer, context.world, stops)
    episodes = None
    if any(task.environment for task in prompts.tasks):
        from titan_pt.environments.episodes import build_episodes

        episodes = build_episodes(prompts.tasks, context.tokenizer, engine, context.config.rollout, stop_requested)
    elif context.config.rollout.max_episode_tokens:
        logger.warning(
            "rollout.max_episode_tokens only takes room from the prompts: no task is played in turns; leave it out"
        )
    sampler = RolloutSampler(
        engine,
        context.tokenizer,
        prompts.tasks,
        context.world,
        grading_options(context.config.grpo),
        stop_requested=stop_requested,
        raise_if_preempted=context.raise_if_preempted,
        episodes=episodes,
    )
    return GrpoStep(context, engine, sampler, build_reference(context), _teacher(context))


def grading_options(grpo: Grpo) -> GradingOptions:
    """The fields of [grpo] that decide how completions are graded."""
    return GradingOptions(**{field.name: getattr(grpo, field.name) for field in dataclasses.fields(GradingOptions)})


def build_reference(context: TrainContext[GrpoConfig]) -> Reference | None:
    """The reference, sharded like the policy; None without a KL penalty.

    Raises:
        ConfigError: grpo.reset_optimizer, and the optimizer cannot be set anew.
    """
    options = context.config.grpo
    if options.kl_coef == 0.0:
        return None
    if options.reset_optimizer and not context.optimizer_state.resets:
        raise ConfigError(
            f"grpo.reset_optimizer = true: {type(context.optimizer).__name__} makes state when it is built, or "
            "saves it by functions of its own, so that it cannot be set anew; set it to false"
        )
    if context.config.lora.enable:
        model = import_attribute(WITHOUT_ADAPTERS)(context.model)
    else:
        config = for_rollouts(context.config)
        model = pretrain.parallelize(pretrain.build_model(config, context.tokenizer), config, context.world)
        materialize(model, context.config, context.world)
    return Reference(model, context.model, context.optimizer_state, options)


def _teacher(context: TrainContext[GrpoConfig]) -> "TeacherModel | None":
    if not context.config.grpo.has_teacher:
        return None
    from titan_pt.trainers.grpo.distill import build_teacher

    return build_teacher(context, for_rollouts(context.config))


def build_validator(context: TrainContext[GrpoConfig], step: Step) -> Validator | None:
    """The validator by accuracy on held-out problems, which uses the engine of the step; None where it is off."""
    if not context.config.validation.enable:
        return None
    assert isinstance(step, GrpoStep)
    return GrpoValidator(context, step.engine, step.evaluator, step.reference, step.watch)


def stop_tokens(tokenizer: Tokenizer, tasks: Sequence[Task]) -> list[int]:
    """Tokens that end a completion: those that end the model's answers, and the tasks' stop texts.

    Raises:
        ConfigError: a stop text is not exactly one token, or tasks differ, whose completions are sampled together.
    """
    stops = {tuple(sorted(task.stop)) for task in tasks}
    if len(stops) > 1:
        raise ConfigError(
            f"grpo.tasks: stop differs between tasks ({', '.join(map(str, sorted(stops)))}); give all the same"
        )
    ids = stop_ids(tokenizer)
    for text in next(iter(stops)):
        tokens = [tokenizer.special_ids[text]] if text in tokenizer.special_ids else tokenizer.encode(text)
        if len(tokens) != 1:
            raise ConfigError(
                f"grpo.tasks: stop = {text!r}: {len(tokens)} tokens; a stop must be one token of the tokenizer"
            )
        ids += tokens
    return list(dict.fromkeys(ids))


def describe(context: TrainContext[GrpoConfig], flops_per_token: float, peak: float | None) -> None:
    """Log what the run will do."""
    config, prompts = context.config, context.dataloader
    options, rollout = config.grpo, config.rollout
    say(
        "Step",
        f"{options.prompts_per_step} prompts x {rollout.num_samples} samples = "
        f"{options.prompts_per_step * rollout.num_samples:,} completions of at most {rollout.completion_tokens} tokens",
    )
    say(
        "Budget",
        f"{context.run_size.steps:,} steps of {options.num_minibatches * options.num_iterations} updates of loss "
        f"{options.loss}, {config.training.local_batch_size * config.training.seq_len:,} tokens at once on each rank",
    )
    total = sum(row.weight for row in options.tasks)
    for row, task in zip(options.tasks, prompts.tasks, strict=True):
        count = options.prompts_per_step * context.run_size.steps * row.weight / total
        say(
            "Task",
            f"{task.name}: {len(task.train):,} problems, {row.weight / total:.1%} of the prompts = "
            f"{count / len(task.train):.3g} visits or more; {len(task.evaluation):,} held out; {how_asked(task.chat)}",
        )
    for text in config.settings_without_effect():
        logger.warning(text)
    if config.data.sources:
        logger.warning("[[data.sources]] has no effect on grpo; its prompts come from [[grpo.tasks]]")


SPEC = TrainerSpec[GrpoConfig](
    name="grpo",
    config_type=GrpoConfig,
    plan_run_size=plan,
    build_tokenizer=pretrain.SPEC.build_tokenizer,
    build_model=build_model,
    parallelize=pretrain.parallelize,
    build_optimizers=build_optimizers,
    build_lr_schedulers=build_lr_schedulers,
    build_dataloader=build_dataloader,
    describe=describe,
    build_step=build_step,
    build_validator=build_validator,
    build_dry_run=build_dry_run,
    validates_first=True,
)

__all__ = ["SPEC"]
