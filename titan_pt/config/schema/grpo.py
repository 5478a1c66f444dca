"""The config of reinforcement learning: `[rollout]`, `[grpo]`, `[[grpo.tasks]]`, `[teacher]`. No torch here."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from titan_pt.config.errors import one_of
from titan_pt.config.schema.job_config import BrokenRule, JobConfig
from titan_pt.config.schema.lora import Lora, lora_rules, lora_without_effect
from titan_pt.config.schema.sampling import EvalSamples, GroupSize, MaxRows, NewTokens, TopK, TopP, TrainedTemperature
from titan_pt.config.schema.section import (
    Count,
    Fraction,
    Name,
    NonNegative,
    PathName,
    Positive,
    PositiveInt,
    Section,
    Switch,
    Timeout,
)
from titan_pt.config.schema.values import Size

TokenCount = Annotated[Size, Field(gt=0)]


class Rollout(Section):
    """[rollout] completions that the policy is trained on."""

    engine: Name = "native"
    """Rollout engine: "native" (the training model's own modules), "vllm" (the extra of that name, docs/vllm.md) or one
    registered by experimental.custom_import."""
    num_samples: GroupSize = 16
    """Completions of each prompt, a group."""
    temperature: TrainedTemperature = 1.0
    """Logits are divided by it, in sampling and in training alike; from 0.001 to 100. Evaluation is greedy besides."""
    top_p: TopP = 1.0
    """Sample from the likeliest tokens that reach this probability; below 1 the trainer scores another distribution."""
    top_k: TopK = 0
    """Sample from the k likeliest tokens; 0 is all. Above 0 the trainer scores another distribution."""
    max_new_tokens: NewTokens = 384
    """Most tokens of a completion, the end-of-text token included; of one turn, in a task that is played in turns."""
    max_turns: PositiveInt = 8
    """Most turns of the model in an episode, of a task that is played in turns."""
    max_episode_tokens: TokenCount | None = None
    """Most tokens of an episode, the environment's included: all behind the prompt. Tasks that are played in turns need
    it; it then is the length of every completion in plans and in the constant of dr_grpo."""
    environment_workers: PositiveInt = 2
    """Processes of each rank that run environments."""
    environment_timeout_seconds: Timeout = 10.0
    """Limit of one answer of an environment. Its process is ended then, and the episode counts as 0."""
    environment_memory_gib: Positive = 1.0
    """Memory that the answers may add to what such a process has at its start."""
    overlong_prompts: Literal["error", "skip", "truncate"] = "error"
    """A prompt that leaves no room for max_new_tokens in training.seq_len: stop at start, leave it out, or cut its
    beginning off. Both are counted in the log."""
    max_rows: MaxRows = 1024
    """Most completions decoded together on one rank; more are done in turns."""
    compile: Switch = "auto"
    """torch.compile the decoding step; on CUDA its kernels are replayed as graphs. "auto": on CUDA."""
    record_freq: Count = 1
    """Steps between files rollouts/step-N.jsonl that hold every completion; 0 writes none."""
    print_freq: PositiveInt = 10
    """Steps between those that print samples; step 1 always does."""
    print_samples: Count = 1
    """Completions shown in the console and TensorBoard each time; 0 shows none."""

    @property
    def completion_tokens(self) -> int:
        """Most tokens that follow a prompt."""
        return self.max_episode_tokens or self.max_new_tokens


class GrpoTask(Section):
    """[[grpo.tasks]] prompts and the reward of answers to them."""

    name: Name
    """gsm8k, medqa, arithmetic, sorting, reasoning_gym:<name>; played in turns: calculator, guess_number, wordle; or
    one registered by experimental.custom_import."""
    weight: Positive = 1.0
    """Share of the prompts, relative to the other tasks' weights."""
    path: PathName | None = None
    """Local training problems by glob (.jsonl, .jsonl.gz, .json, .parquet). Unset: the task's own set of the hub."""
    eval_path: PathName | None = None
    """Local problems to evaluate on. Unset: the hub's own split, or with `path` a held-out part of it."""
    holdout_fraction: Fraction = 0.1
    """Share of the problems, by a hash of the question, to evaluate on where there is no set of its own."""
    prompt_template: Name | None = None
    """Text with {question} in it. Unset: the task's own. Names of special tokens in it stand for these tokens."""
    special_tokens: bool = False
    """Read the names of special tokens in its problems as these tokens, as in prompt_template. Off: they are text."""
    chat: Literal["auto"] | bool = "auto"
    """Ask through the chat template, as lm-evaluation-harness does with --apply_chat_template. "auto": where the run
    starts from a model of conversations: a Hugging Face folder with a template, or sft on messages."""
    system_prompt: Name | None = None
    """Text of the first turn, "system"; of a plain prompt its beginning."""
    stop: list[Name] = []
    """Texts of one token each that end a completion beside the end-of-text token; the same for all tasks."""
    rewards: dict[Name, Annotated[float, Field(allow_inf_nan=False)]] = {"correct": 1.0}
    """Weight of each reward in the sum: correct, format, length, or a registered one."""
    level: PositiveInt | None = None
    """Difficulty of arithmetic, sorting and calculator: 1 is the easiest."""
    shuffle_options: bool = True
    """medqa: another order of the options at each visit of a question."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be read, or whose own worked answer is graded wrong: stop, or leave it out and count it in the
    log."""
    options: dict[Name, bool | int | float | str] = {}
    """Options of a reasoning_gym or registered task, passed on."""


class EvaluationTask(GrpoTask):
    """A task that is only evaluated on: its training problems are not read."""


class Grpo(Section):
    """[grpo] Group Relative Policy Optimization (arXiv 2402.03300) and its relatives."""

    tasks: list[GrpoTask] = []
    """The mixture of tasks: a TOML array of tables."""
    prompts_per_step: PositiveInt = 16
    """Groups of one step over all ranks."""
    num_minibatches: PositiveInt = 1
    """Optimizer updates of one pass over a step's groups, each on an equal part of them."""
    num_iterations: PositiveInt = 1
    """Passes over a step's groups."""
    loss: Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo", "reinforce", "distill"] = "dapo"
    """Policy loss, see trainers/grpo/losses.py; "distill" learns from [teacher]. The metric clip_fraction is the share
    of tokens whose term the clip changed: with cispo those above cispo_cap, whatever the sign of their advantage; with
    gspo all tokens of a clipped sequence. TRL reports cispo's for positive advantages alone, and gspo's as a share of
    sequences."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the deviation of their group, of all rewards, or not at all: by Bessel's deviation
    + 1e-6, where TRL adds 1e-4."""
    clip_low: Fraction = 0.2
    """Ratios below 1 - clip_low get no gradient where the advantage is negative."""
    clip_high: NonNegative = 0.28
    """Ratios above 1 + clip_high get no gradient where the advantage is positive."""
    cispo_cap: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 5.0
    """Largest weight of a token in the cispo loss."""
    importance_sampling: Literal["none", "token"] = "none"
    """"token": weigh each token by min(trainer's / engine's probability, importance_cap), for foreign engines; the
    default with rollout.engine = "vllm"."""
    importance_cap: Positive = 2.0
    """Largest of these weights."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL divergence to the reference model; 0 builds none."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"
    """Estimator of that divergence at each token; only the gradient of k2 is the KL's own."""
    kl_max_log_ratio: Positive = 10.0
    """The log ratio to the reference is clamped to this."""
    reference_reset: Literal["none", "interval", "plateau"] = "none"
    """When the reference becomes a copy of the policy: never, every reference_reset_interval steps, or when
    plateau_evals evaluations brought no better accuracy."""
    reference_reset_interval: PositiveInt = 300
    """Steps between resets by interval."""
    plateau_evals: PositiveInt = 3
    """Evaluations without a better mean accuracy before a reset by plateau."""
    reset_optimizer: bool = False
    """Start the optimizer's moments anew at a reset."""
    dynamic_sampling: Literal["refill", "filter", "none"] = "refill"
    """Groups whose rewards are all equal teach nothing. "refill": sample other prompts until prompts_per_step are left;
    "filter": leave them out; "none": train on what comes, where they count in the mean of the loss."""
    retire_pass_rate: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """A problem is not asked again once this share of its group was right. Unset: each comes at each visit."""
    oversample: Annotated[float, Field(ge=1.0, le=100.0)] = 1.5
    """Prompts sampled for each group that is missing; what is too many comes first in the next step."""
    max_gen_batches: PositiveInt = 10
    """Rounds of sampling in one step. A step without any group of different rewards after them ends the run."""
    overlong: Literal["zero", "mask", "penalty"] = "zero"
    """A completion cut off at max_new_tokens, or an episode at max_episode_tokens or in a turn: reward 0 at most; out
    of the loss; or, beside its reward, DAPO's penalty that grows over the last overlong_buffer tokens. With "mask" the
    losses that are means over sequences divide by the sequences that train; TRL's mask_truncated_completions divides by
    all."""
    overlong_buffer: TokenCount = 64
    """Tokens before max_new_tokens, or an episode's max_episode_tokens, over which the penalty grows to
    overlong_penalty; what is cut off before pays all of it."""
    overlong_penalty: NonNegative = 1.0
    """Largest penalty."""
    reward_timeout_seconds: Timeout = 10.0
    """Limit of one reward function on one completion."""
    on_reward_error: Literal["zero", "stop"] = "zero"
    """A reward function that raises, takes too long or gives no finite number: reward 0 and a count, or the end."""
    max_idle_steps: PositiveInt = 10
    """Steps in a row without any group of different rewards before the run ends; without a refill."""
    eval_prompts: PositiveInt = 256
    """Most held-out problems of a task in one evaluation, the same each time."""
    eval_samples: EvalSamples = 8
    """Sampled completions of each, for pass@1 and pass@this; 0: greedy only."""
    on_collapse: Literal["warn", "rewind", "stop"] = "warn"
    """Held-out accuracy (checkpoint.keep_best if it is one, else the mean of the tasks') twice in a row below its best
    by more than the margin: say so; go back to the best saved step, training.max_rewinds times, each time with 0.3 of
    the learning rate; or stop with exit code 70."""
    collapse_margin: Fraction = 0.25
    """Share of the best accuracy that has to be lost; besides, more than two standard errors of the evaluations."""
    forecast: bool = True
    """From 30% of the steps on, each evaluation says by a saturating curve what the last one will find."""
    probe: Literal["stop", "warn", "off"] = "stop"
    """Before step 1: sample probe_prompts groups and stop, or only warn, where there is too little to learn from."""
    probe_prompts: PositiveInt = 256
    """Groups that the probe samples."""
    probe_min_signal: Fraction = 0.05
    """Least share of groups with different rewards."""

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher, not different rewards, gives the signal: each group then has one."""
        return self.loss == "distill"

    @property
    def refills(self) -> bool:
        """Whether a step samples other prompts in the place of groups without signal."""
        return self.dynamic_sampling == "refill" and not self.has_teacher

    @property
    def probes(self) -> bool:
        """Whether the readiness probe samples before step 1."""
        return self.probe != "off" and not self.has_teacher


class Teacher(Section):
    """[teacher] the larger model that grpo.loss = "distill" learns from, on the student's own completions."""

    path: PathName | None = None
    """A run folder, its checkpoint folder, one step-N, or a Hugging Face folder; of the student's tokenizer."""
    kl_estimator: Literal["full", "sampled"] = "full"
    """Reverse KL of student to teacher at each sampled position: the "full" sum over the vocabulary, or an estimate by
    the "sampled" token alone, which needs the teacher's log-probabilities only and has more variance."""
    kl_coef: Positive = 1.0
    """Weight of this divergence in the loss."""
    reward_coef: NonNegative = 0.0
    """Weight of the rewards' advantages beside it, in the loss of "dapo"; 0: rewards are only recorded."""


class RolloutConfig(JobConfig):
    """A run that samples completions from its own model."""

    rollout: Rollout = Rollout()

    def prompt_tokens(self) -> int:
        """Assumed length of a prompt, where none is read: GSM8K's are shorter, MedQA's a little longer."""
        return min(256, self.training.seq_len - self.rollout.completion_tokens)


class GrpoConfig(RolloutConfig):
    """A run of reinforcement learning with verifiable rewards."""

    # Reinforcement learning takes steps a hundred times smaller than pretraining, and few of them.
    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "training": {"steps": 500},
        "optimizer": {"lr": 3e-6, "weight_decay": 0.0},
        "lr_scheduler": {"warmup_steps": 10, "decay_type": "cosine", "min_lr_factor": 0.1},
        "validation": {"enable": True, "freq": 20},
        "metrics": {"log_freq": 1},
        "checkpoint": {"interval": 50},
    }

    grpo: Grpo = Grpo()
    lora: Lora = Lora()
    teacher: Teacher = Teacher()

    @model_validator(mode="before")
    @classmethod
    def _corrects_vllm(cls, tables: Any) -> Any:
        """With vLLM the default of grpo.importance_sampling is "token": its kernels round in another way."""
        rollout, grpo = (tables.get(name, {}) if isinstance(tables, dict) else None for name in ("rollout", "grpo"))
        if isinstance(rollout, dict) and isinstance(grpo, dict) and rollout.get("engine") == "vllm":
            return {**tables, "grpo": {"importance_sampling": "token", **grpo}}
        return tables

    def check_packages(self) -> None:
        """Raise a ConfigError where vLLM is to sample and is not here."""
        if self.rollout.engine == "vllm":
            from titan_pt.config.vllm_package import check_vllm

            check_vllm()

    def step_rows(self) -> int:
        """Completions that a step samples in its first round, over all ranks."""
        oversample = self.grpo.oversample if self.grpo.refills else 1.0
        return math.ceil(self.grpo.prompts_per_step * oversample) * self.rollout.num_samples

    def sampled_rows(self, num_ranks: int) -> int:
        """Most completions that one rank decodes together in a step, the probe or an evaluation."""
        grpo, rollout = self.grpo, self.rollout
        wanted = [self.step_rows()]
        if grpo.probes:
            wanted.append(grpo.probe_prompts * rollout.num_samples)
        if self.validation.enable:
            wanted.append(grpo.eval_prompts * max(1, grpo.eval_samples))
        return min(rollout.max_rows, -(-max(wanted) // num_ranks))

    def written_folders(self) -> Iterator[tuple[str, str]]:
        """Yield those of every run, and that of the completions."""
        yield from super().written_folders()
        if self.rollout.record_freq:
            yield "rollout.record_freq", "rollouts"

    def broken_rules(self) -> Iterator[BrokenRule]:
        """Yield the broken rules between the fields of a grpo run."""
        grpo, rollout = self.grpo, self.rollout
        training = self.training
        if not grpo.tasks:
            yield ["grpo.tasks"], 'grpo.tasks: empty; add a [[grpo.tasks]] table, such as name = "gsm8k"'
        names = [task.name for task in grpo.tasks]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield ["grpo.tasks"], f"grpo.tasks: two tasks are named {name!r}; names must differ"
        yield from self._rules_of_the_model()
        yield from lora_rules(self, self.lora)
        yield from self._rules_of_lengths()
        if grpo.prompts_per_step % grpo.num_minibatches:
            yield (
                ["grpo.num_minibatches", "grpo.prompts_per_step"],
                f"grpo.num_minibatches = {grpo.num_minibatches}: must divide grpo.prompts_per_step = "
                f"{grpo.prompts_per_step}",
            )
        if grpo.overlong == "penalty" and grpo.overlong_buffer >= rollout.completion_tokens:
            name = "max_episode_tokens" if rollout.max_episode_tokens else "max_new_tokens"
            yield (
                ["grpo.overlong_buffer", f"rollout.{name}"],
                f"grpo.overlong_buffer = {grpo.overlong_buffer}: must be below rollout.{name} = "
                f"{rollout.completion_tokens}",
            )
        for name in ("tasks", "sample_prompts"):
            if getattr(self.validation, name):
                yield (
                    [f"validation.{name}"],
                    f"validation.{name}: has no effect on grpo, which evaluates on [[grpo.tasks]] and prints "
                    "rollout.print_samples; leave it out",
                )
        if training.tokens is not None:
            yield ["training.tokens"], "training.tokens: grpo counts steps, not tokens; set training.steps"
        if grpo.loss == "gspo" and min(grpo.clip_low, grpo.clip_high) > 0.05:
            yield (
                ["grpo.loss", "grpo.clip_low", "grpo.clip_high"],
                f"grpo.clip_low = {grpo.clip_low}, clip_high = {grpo.clip_high}: a clip of gspo's ratios, which are of "
                "whole sequences, starts at about 3e-4 and 4e-4 (GSPO, section 5.1); above 0.05 it never acts",
            )
        if grpo.kl_coef == 0.0 and grpo.reference_reset != "none":
            yield (
                ["grpo.reference_reset", "grpo.kl_coef"],
                f'grpo.reference_reset = "{grpo.reference_reset}": there is no reference without grpo.kl_coef; '
                'raise it, or set reference_reset = "none"',
            )
        for key, value in (("reference_reset", "plateau"), ("on_collapse", "rewind"), ("on_collapse", "stop")):
            if getattr(grpo, key) == value and not self.validation.enable:
                yield (
                    [f"grpo.{key}", "validation.enable"],
                    f'grpo.{key} = "{value}": needs evaluations; set validation.enable = true',
                )
        if grpo.on_collapse == "rewind":
            yield from self._ways_back()

    def _ways_back(self) -> Iterator[BrokenRule]:
        """Yield what a run lacks that is to go back to its best saved step."""
        checkpoint, freq = self.checkpoint, self.validation.freq
        sampled = ["pass_at_1"] if self.grpo.eval_samples else []
        names = ["accuracy", "accuracy_official", "accuracy_lenient", *sampled]
        known = [f"eval/{task.name}/{name}" for task in self.grpo.tasks for name in names]
        if checkpoint.keep_best not in known:
            yield (
                ["grpo.on_collapse", "checkpoint.keep_best"],
                f'grpo.on_collapse = "rewind": goes back to the best step by checkpoint.keep_best, which is '
                f"{checkpoint.keep_best!r}; set it to one of {one_of(known)}",
            )
        if not checkpoint.enable or checkpoint.load_only or checkpoint.interval % freq:
            yield (
                ["grpo.on_collapse", "checkpoint.interval", "validation.freq"],
                'grpo.on_collapse = "rewind": needs saved steps that were evaluated; set checkpoint.enable = true and '
                f"checkpoint.interval = {checkpoint.interval} to a multiple of validation.freq = {freq}",
            )

    def _rules_of_lengths(self) -> Iterator[BrokenRule]:
        rollout, training = self.rollout, self.training
        for name in ("max_new_tokens", "max_episode_tokens"):
            if (getattr(rollout, name) or 0) >= training.seq_len:
                yield (
                    [f"rollout.{name}", "training.seq_len"],
                    f"rollout.{name} = {getattr(rollout, name)}: must be below training.seq_len = "
                    f"{training.seq_len}, which holds the prompt too",
                )
        if rollout.completion_tokens < rollout.max_new_tokens:
            yield (
                ["rollout.max_episode_tokens", "rollout.max_new_tokens"],
                f"rollout.max_episode_tokens = {rollout.max_episode_tokens}: must be at least rollout.max_new_tokens = "
                f"{rollout.max_new_tokens}, the tokens of one turn",
            )

    def _rules_of_the_model(self) -> Iterator[BrokenRule]:
        if self.rollout.engine == "vllm" and self.rollout.temperature < 0.01:
            yield (
                ["rollout.temperature", "rollout.engine"],
                f'rollout.temperature = {self.rollout.temperature:g}: rollout.engine = "vllm" takes 0.01 for all below '
                "it; raise it to 0.01",
            )
        if self.grpo.has_teacher != (self.teacher.path is not None):
            yield (
                ["grpo.loss", "teacher.path"],
                'grpo.loss = "distill": needs a teacher; set teacher.path to a run or a Hugging Face folder'
                if self.grpo.has_teacher
                else f'teacher.path: has no effect on grpo.loss = "{self.grpo.loss}"; set grpo.loss = "distill"',
            )
        if dropout := getattr(self.model, "dropout", None):
            yield (
                ["model.dropout"],
                f"model.dropout = {dropout:g}: grpo trains the model that sampled, of which dropout makes another: "
                "set it to 0: no weight depends on it",
            )
        if self.grpo.reference_reset == "plateau" and self.validation.weights == "both":
            yield (
                ["grpo.reference_reset", "validation.weights"],
                'grpo.reference_reset = "plateau": goes by one set of weights; set validation.weights to "trained" or '
                '"ema"',
            )

    def settings_without_effect(self) -> Iterator[str]:
        """Yield a warning for each changed setting that does nothing here, and for truncated sampling distributions."""
        grpo, rollout, refills = self.grpo, self.rollout, self.grpo.refills
        needs = {
            "kl_estimator": (grpo.kl_coef > 0, "kl_coef above 0"),
            "kl_max_log_ratio": (grpo.kl_coef > 0, "kl_coef above 0"),
            "reset_optimizer": (grpo.reference_reset != "none", "a reference_reset"),
            "reference_reset_interval": (grpo.reference_reset == "interval", 'reference_reset = "interval"'),
            "plateau_evals": (grpo.reference_reset == "plateau", 'reference_reset = "plateau"'),
            "cispo_cap": (grpo.loss == "cispo", 'loss = "cispo"'),
            "importance_cap": (grpo.importance_sampling == "token", 'importance_sampling = "token"'),
            "dynamic_sampling": (not grpo.has_teacher, "a loss by rewards: every group learns from the teacher"),
            "probe": (not grpo.has_teacher, "a loss by rewards: every group learns from the teacher"),
            "oversample": (refills, 'dynamic_sampling = "refill"'),
            "max_gen_batches": (refills, 'dynamic_sampling = "refill"'),
            "advantage_scale": (not grpo.has_teacher or self.teacher.reward_coef > 0, "teacher.reward_coef above 0"),
            "max_idle_steps": (
                grpo.dynamic_sampling != "refill" and not grpo.has_teacher,
                'dynamic_sampling = "filter" or "none"',
            ),
            "overlong_buffer": (grpo.overlong == "penalty", 'overlong = "penalty"'),
            "overlong_penalty": (grpo.overlong == "penalty", 'overlong = "penalty"'),
        }
        for key, (holds, need) in needs.items():
            if not holds and getattr(grpo, key) != Grpo.model_fields[key].default:
                yield f"grpo.{key} has no effect: it needs {need}"
        for key in ("kl_estimator", "kl_coef", "reward_coef"):
            if not grpo.has_teacher and getattr(self.teacher, key) != Teacher.model_fields[key].default:
                yield f'teacher.{key} has no effect: it needs grpo.loss = "distill"'
        yield from lora_without_effect(self.lora)
        if rollout.top_k or rollout.top_p < 1:
            yield (
                "rollout.top_k and top_p: the trainer scores the whole distribution, so samples are not quite on-policy"
            )
