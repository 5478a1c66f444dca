"""The reward "vowels". A reward gets what was sampled and its task, and may ask `task.grade` for the verdict."""

from titan_pt.tasks.rewards import Sample, register_reward
from titan_pt.tasks.task import Task


def vowels(sample: Sample, _task: Task) -> float:
    """Share of vowels among the letters of a completion."""
    text = sample.completion.lower()
    return sum(text.count(letter) for letter in "aeiou") / max(1, len(text))


register_reward("vowels", vowels)
