"""The task "calculator": sums that are too hard to do in the head, and a calculator to call."""

from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.data.builtin.tool_sums import CALCULATOR, LEVELS, NUM_SUMS, tool_sum
from titan_pt.environments.arithmetic_parser import number_text, value_of
from titan_pt.environments.tools import CallableTool, ToolEnvironment
from titan_pt.tasks.numbers import number_task
from titan_pt.tasks.options import level_of, whole_numbers
from titan_pt.tasks.problems import Entry, hold_out
from titan_pt.tasks.task import Task, refuse_unused


def build(row: GrpoTask, _seed: int) -> Task:
    """The task of the sums of `level`, the same for every seed; the option `turns` bounds the model's turns."""
    refuse_unused(row, "level", "holdout_fraction", "options")
    level = level_of(row, LEVELS)
    options = whole_numbers(row.options, {"turns": 4}, {"turns": 2})  # a call and an answer
    found = {made.question: made for made in (tool_sum(level, index) for index in range(NUM_SUMS))}
    entries = [
        Entry(f"{row.name}/level-{level}:{number}", made.question, str(made.answer), solution=f"#### {made.answer}")
        for number, made in enumerate(found.values())
    ]
    train, evaluation = hold_out(entries, row.holdout_fraction)
    environment = ToolEnvironment([CallableTool(CALCULATOR, calculate)], options["turns"])
    return number_task(row.name, train, evaluation, template="{question}", environment=environment)


def calculate(expression: str) -> str:
    """The value of a written sum as text; a ValueError says what is wrong with it."""
    return number_text(value_of(expression))
