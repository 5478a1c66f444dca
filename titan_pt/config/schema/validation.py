"""The table [validation] with its [[validation.tasks]]."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from titan_pt.config.schema.data import Source
from titan_pt.config.schema.section import AllOrCount, Fraction, Name, PathName, PositiveInt, Section
from titan_pt.config.schema.values import Size


def _answer_length(value: Any) -> Any:
    from titan_pt.config.schema.sampling import SAMPLING_RANGES, within  # of no use to a run that samples nothing

    return within(SAMPLING_RANGES["max_new_tokens"])(value)


AnswerTokens = Annotated[Size, AfterValidator(_answer_length)]


class ValidationTask(Section):
    """[[validation.tasks]] problems that the model answers at each validation."""

    name: Name
    """gsm8k, medqa, arithmetic, sorting, reasoning_gym:<name>, core, or one of experimental.custom_import."""
    path: PathName | None = None
    """Local problems by glob (.jsonl, .jsonl.gz, .json, .parquet); of core a folder, eval_data. Unset: the hub's."""
    level: PositiveInt | None = None
    """Difficulty of arithmetic or sorting: 1 is the easiest."""
    special_tokens: bool = False
    """Read the names of special tokens in its problems as these tokens. Off: they are text."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be read, or whose own worked answer is graded wrong: stop, or leave it out and count it in the
    log."""
    chat: Literal["auto"] | bool = "auto"
    """Ask through the chat template, as lm-evaluation-harness does with --apply_chat_template. "auto": where the run
    trains on conversations."""
    system_prompt: Name | None = None
    """Text of the first turn, "system"; of a plain prompt its beginning."""
    limit: PositiveInt = 100
    """Most problems asked, the same each time; of core, of each of its tasks."""
    max_new_tokens: AnswerTokens = 256
    """Most tokens of an answer."""


class Validation(Section):
    """[validation] loss on documents that are never trained on, and accuracy on tasks."""

    enable: bool = False
    """Validate at step 1, every `freq` steps and at the last step."""
    freq: PositiveInt = 10
    """Steps between validations."""
    steps: AllOrCount = -1
    """Global batches of one validation, the same each time; -1: all validation documents."""
    local_batch_size: PositiveInt = 8
    """Rows of one micro-batch on one rank."""
    weights: Literal["trained", "ema", "both"] = "trained"
    """Which are validated: "ema": the averages of training.ema_decay; "both": their values are added as "ema/..."."""
    holdout_fraction: Fraction = 0.01
    """Share of each training source's documents held out, chosen by a hash of the text; unused with `sources`."""
    sources: list[Source] = []
    """Validation documents of their own; nothing is then held out of the training sources."""
    tasks: list[ValidationTask] = []
    """Accuracy on tasks, by greedy answers: a TOML array of tables. Takes an unsharded copy of the weights."""
    sample_prompts: list[Name] = []
    """Texts that the model continues in the log and in TensorBoard. Names of special tokens stand for these tokens."""
    sample_tokens: AnswerTokens = 64
    """Most tokens of a continuation."""
