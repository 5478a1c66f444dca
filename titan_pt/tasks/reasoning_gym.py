"""`reasoning_gym:<name>`: generated problems of the package reasoning-gym with its own scorers (arXiv 2505.24760)."""

import dataclasses
import importlib
import json
import logging
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from titan_pt.config.errors import ConfigError, nearest, shown
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.tasks.grading import find_text
from titan_pt.tasks.problems import Entry, hold_out, normalised, plain_problems
from titan_pt.tasks.task import Problem, Task, refuse_unused

logger = logging.getLogger("titan_pt")

_NUM_PROBLEMS = 1000
_CHECKED = """
ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation boxnet
caesar_cipher calendar_arithmetic chain_sum circuit_logic codeio color_cube_rotation count_bits count_primes
course_schedule cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships figlet_font
fraction_simplification futoshiki game_of_life gcd graph_color group_anagrams isomorphic_strings jugs kakurasu
knight_swap knights_knaves largest_island lcm leg_counting letter_counting letter_jumble list_functions mahjong_puzzle
manipulate_matrix maze mini_sudoku modulo_grid needle_haystack number_filtering number_format number_sequence
palindrome_generation palindrome_partitioning path_star polynomial_equations pool_matrix prime_factorization products
propositional_logic quantum_lock ransom_note rearc rectangle_count rotate_matrix rotten_oranges rubiks_cube rush_hour
self_reference sentence_reordering shortest_path simple_equations simple_geometry sokoban spell_backward
string_manipulation string_splitting string_synthesis sudoku survo syllogism time_intervals tower_of_hanoi tsumego
word_ladder word_sequence_reversal word_sorting zebra_puzzles
"""
SETS = frozenset(_CHECKED.split())
"""Sets of reasoning-gym 0.1.25 whose scorers were read and tried: they evaluate no answer as code, take no nonsense
(`self_check`) and no wrong number for right, and take their own answers for right."""

_EVALUATING = (
    "binary_matrix bitwise_arithmetic countdown intermediate_integration n_queens number_sorting "
    "polynomial_multiplication puzzle24 simple_integration spiral_matrix string_insertion"
)
_REFUSED = {
    **dict.fromkeys(_EVALUATING.split(), "its scorer evaluates text as code"),
    "complex_arithmetic": "its scorer takes 'nan' for right",
    "game_of_life_halting": "its scorer takes any text for right where the answer is False",
    "coin_flip": "its scorer takes the beginning of a number for right, such as 0 for 0.125",
    "gsm_symbolic": "its scorer takes -18 for 18",
    "power_function": "its scorer takes 0.4 for 1e-6",
}


def build(row: GrpoTask, seed: int) -> Task:
    """The task of a reasoning_gym set: `create_dataset(name, seed=seed, size=1000, **row.options)`, each question once.

    A completion is right where the set's scorer gives 1.0 to its answer: what follows the one line that begins with
    "Answer:", up to the end, as many answers are grids (`grading.find_text`).

    Raises:
        ConfigError: an unknown set or option, a missing package, or a set whose scorer cannot be trusted.
    """
    refuse_unused(row, "holdout_fraction", "options")
    name = row.name.partition(":")[2]
    options = {"seed": seed, "size": _NUM_PROBLEMS, **row.options}
    dataset = _open_dataset(name, options)
    items = {f"{row.name}/{number}": item for number, item in enumerate(_generate(name, options))}
    train, evaluation = hold_out(_entries(items), row.holdout_fraction)

    def grade(completion: str, problem: Problem, rule: str) -> bool:
        answer = find_text(completion, rule)
        try:
            return answer is not None and bool(dataset.score_answer(answer, items[problem.id]) >= 1.0)
        except Exception:  # some scorers raise where an answer has another form; right answers are checked at opening
            return False

    return Task(
        name=row.name,
        train=plain_problems(train, row.name),
        evaluation=plain_problems(evaluation, row.name),
        grade=grade,
        template='Question: {question}\nEnd with a line "Answer: ...".\n',
        find_answer=find_text,
    )


def _open_dataset(name: str, options: Mapping[str, Any]) -> Any:
    try:
        known = importlib.import_module("reasoning_gym.factory").DATASETS
    except ImportError as error:
        raise ConfigError(f"{error}; pip install 'titan-pt[reasoning]' brings the package reasoning_gym") from None
    if name not in SETS or name not in known:
        what = f"has no {shown(name)}"
        if name in known:
            what = f"has {shown(name)}, but {_REFUSED.get(name, 'its scorer was not checked')}"
        choices = SETS & set(known)
        raise ConfigError(
            f"name: reasoning_gym {what}{nearest(name, choices)}; choose one of the {len(choices)} whose scorers were "
            'checked, such as reasoning_gym:chain_sum; python -c "from titan_pt.tasks.reasoning_gym import SETS; '
            'print(*sorted(SETS))" lists them'
        )
    settings = known[name][1]
    size = options["size"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"options.size = {shown(size)}: want a number of problems from 1 on")
    for option in options:
        fields = [field.name for field in dataclasses.fields(settings)]
        if option not in fields:
            raise ConfigError(f"options.{option}: unknown{nearest(option, fields)}; {name} has {', '.join(fields)}")
    try:
        return importlib.import_module("reasoning_gym").create_dataset(name, **options)
    except Exception as error:  # each set checks its options differently
        raise ConfigError(f"options: {name} refuses them: {type(error).__name__}: {error}") from error


def _entries(items: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for entry_id, item in items.items():
        # Where there are many right answers there may be none to show.
        gold = str(item["answer"] or "")
        entry = Entry(entry_id, item["question"].strip(), gold, solution=gold and f"Answer: {gold}")
        entries.setdefault(normalised(entry.question), entry)
    return list(entries.values())


def _generate(name: str, options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The items of a set, generated in a new process and the same in every run.

    Some sets iterate over Python sets of texts, whose order differs between processes, or draw from the global random
    numbers: ranks and restarts would get different problems. Only a new process can get a fixed seed of the hash.
    """
    logger.info(f"Generating {options['size']:,} problems of reasoning_gym:{name}")
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"from {__name__} import _write_items; _write_items()"]
    done = subprocess.run([*command, name, json.dumps(options)], env=environment, capture_output=True)
    if done.returncode < 0:
        raise RuntimeError(f"generating reasoning_gym:{name} was ended by signal {-done.returncode}")
    if done.returncode > 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"reasoning_gym:{name} cannot be generated: {lines[-1]}")
    items: Sequence[Mapping[str, Any]] = pickle.loads(done.stdout)
    return items


def _write_items() -> None:
    """Generate the items of a set and pickle them to the standard output; runs in the new process."""
    output, sys.stdout = sys.stdout.buffer, sys.stderr  # some sets print
    name, options = sys.argv[1], json.loads(sys.argv[2])
    random.seed(0)
    np.random.seed(0)
    dataset = importlib.import_module("reasoning_gym").create_dataset(name, **options)
    pickle.dump([dataset[number] for number in range(options["size"])], output)
