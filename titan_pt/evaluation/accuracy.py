"""Accuracies of graded completions, pass@k, and accuracy by likelihood in multiple choice."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.hf.chat import chat_tokens, encode_behind
from titan_pt.tasks.prompts import Prompt, as_asked
from titan_pt.tasks.rollouts import Group
from titan_pt.tasks.task import Task

PromptAnswer = tuple[tuple[int, ...], tuple[int, ...]]
"""(tokens of a prompt, tokens of an answer to it)."""


def accuracies(task: Task, greedy: Sequence[Group]) -> dict[str, float]:
    """Shares of right greedy completions by each rule; for letters also how often each is answered and is right."""
    count = len(greedy)
    answers = [(group.prompt.problem, group.completions[0]) for group in greedy]
    values = {
        "accuracy": sum(answer.strict for _, answer in answers) / count,
        "accuracy_official": sum(answer.official for _, answer in answers) / count,
        "accuracy_lenient": sum(answer.lenient for _, answer in answers) / count,
        "truncated_fraction": sum(answer.truncated for _, answer in answers) / count,
    }
    if not task.letters:
        return values
    answered = Counter(answer.letter for _, answer in answers)
    gold = Counter(problem.gold for problem, _ in answers)
    values["constant_letter_baseline"] = max(gold.values()) / count
    for letter in task.letters:
        values[f"answered_{letter}"] = answered[letter] / count
        right = sum(answer.strict for problem, answer in answers if problem.gold == letter)
        if gold[letter]:
            values[f"accuracy_{letter}"] = right / gold[letter]
    return values


def pass_rates(groups: Sequence[Group], ks: Iterable[int]) -> dict[str, float]:
    """pass_at_<k> for each k of `ks`: the mean over the groups of the unbiased estimate."""
    counts = [(sum(each.strict for each in group.completions), len(group.completions)) for group in groups]
    return {f"pass_at_{k}": sum(pass_at_k(right, drawn, k) for right, drawn in counts) / len(counts) for k in ks}


def likeliest_letters(
    task: Task,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    longest: int,
    score: Callable[[Sequence[PromptAnswer]], Sequence[float]],
) -> float:
    """Share of problems whose right letter is the likeliest after `task.letter_prefix`, as in lm-evaluation-harness.

    Through a chat template the prefix ends the question, and the letter begins the answer without a blank.

    Args:
        longest: most tokens of a question with its answer; a longer question loses its beginning.
        score: log-likelihoods of answers.
    """
    samples = []
    for prompt in prompts:
        if task.chat:
            asked, written = as_asked(tokenizer, task, prompt.problem)
            question = tuple(chat_tokens(tokenizer, asked.messages(written, task.letter_prefix), named=True))
        else:
            question = (*prompt.token_ids, *tokenizer.encode(task.letter_prefix))
        for letter in task.letters:
            answer = tuple(encode_behind(tokenizer, letter) if task.chat else tokenizer.encode(f" {letter}"))
            samples.append((question[-(longest - len(answer)) :], answer))
    scores = score(samples)
    size = len(task.letters)
    right = 0
    for i, prompt in enumerate(prompts):
        by_letter = scores[i * size : (i + 1) * size]
        right += task.letters[by_letter.index(max(by_letter))] == prompt.problem.gold
    return right / len(prompts)


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right.

    1 - C(n - c, k) / C(n, k), Chen et al. 2021, arXiv 2107.03374, equation 1. Computed in whole numbers, so that
    neither large nor nearly equal binomials lose digits.

    Args:
        num_correct: c, right samples among the n drawn.
        num_samples: n.
        k: size of the draw, 1 to n.

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct = {num_correct}: want 0 to num_samples = {num_samples}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k = {k}: want 1 to num_samples = {num_samples}")
    draws = math.comb(num_samples, k)
    return (draws - math.comb(num_samples - num_correct, k)) / draws
