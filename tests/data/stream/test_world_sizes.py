"""The documents of a run on other numbers of ranks: large and small sources, saves at any moment, 1,000 documents."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import ThreadWorld, on_ranks
from hub_server import write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from row_group_helpers import TEXTS, config_of, quick

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Source, Training
from titan_pt.data.sources.opening import open_mixture
from titan_pt.data.stream.loader import DataLoader
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.distributed.world import World

__all__ = ["quick"]  # a fixture

Steps = list[list[tuple[str, ...]]]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobConfig, TokenizedMixture]:
    """A large source read by unit and a small one, 12 streams."""
    folder = tmp_path_factory.mktemp("mixture")
    write_shards(folder / "large", TEXTS, 4, 5)
    write_shards(folder / "small", TEXTS[:30], 1, 30)
    sources = [
        Source(name="large", path=str(folder / "large" / "*.parquet"), weight=0.8),
        Source(name="small", path=str(folder / "small" / "*.parquet"), weight=0.2, max_epochs=5.0),
    ]
    config = config_of(folder, *sources, streams=12)
    config = config.model_copy(update={"training": Training(seq_len=64, global_batch_size=24, local_batch_size=1)})
    opened = open_mixture(sources, config, ThreadWorld())
    assert opened[0].by_row_group and not opened[1].by_row_group
    return config, TokenizedMixture(opened, ByteTokenizer(), 3, holdout_fraction=0.05)


def read(
    mixture: tuple[JobConfig, TokenizedMixture], size: int, steps: int, state: dict[str, Any]
) -> tuple[Steps, Any]:
    """The documents of each rank's rows of some steps on `size` ranks, and the state of all streams."""
    config, mixture = mixture

    def run(world: World) -> tuple[list[list[int]], dict[str, Any]]:
        data = DataLoader(mixture, plan_run_size(config, world.size), world, config)
        if state:
            data.load_state_dict(json.loads(json.dumps(state)))
        found = []
        for _ in range(steps):
            batch = data.next_batch()
            assert batch is not None
            found.append([row for micro in batch.micro_batches for row in micro.tokens_BL.tolist()])
            data.commit(batch)
        kept = data.state_dict()
        data.close()
        return found, kept

    results = on_ranks(size, run)
    owned = 12 // size
    steps_found: Any = []
    for parts in zip(*(found for found, _ in results), strict=True):
        waiting = [iter(part) for part in parts]
        steps_found.append([next(waiting[r % 12 // owned]) for r in range(24)])
    return steps_found, {s: part for _, kept in results for s, part in kept.items()}


def test_a_thousand_documents_on_changing_ranks(mixture: tuple[JobConfig, TokenizedMixture]) -> None:
    expected, final = read(mixture, 1, 30, {})
    found: Steps = []
    state: dict[str, Any] = {}
    for size, steps in ((4, 7), (2, 5), (1, 6), (3, 8), (12, 2), (6, 2)):
        part, state = read(mixture, size, steps, state)
        found += part
    assert found == expected and state == final
    documents = sum(sum(part["draws"]) for part in final.values())
    assert documents > 1000


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 3, 4, 6, 12])), min_size=1, max_size=4))
def test_any_sequence_of_saves_and_sizes(
    mixture: tuple[JobConfig, TokenizedMixture], parts: list[tuple[int, int]]
) -> None:
    found: Steps = []
    state: dict[str, Any] = {}
    for steps, size in parts:
        rows, state = read(mixture, size, steps, state)
        found += rows
    expected, final = read(mixture, 1, sum(steps for steps, _ in parts), {})
    assert found == expected and state == final


def test_a_refused_world_size_names_those_that_fit(tmp_path: Path) -> None:
    config = config_of(tmp_path, Source(name="arithmetic"), streams=64)
    config = config.model_copy(update={"training": Training(seq_len=8, global_batch_size=192, local_batch_size=1)})
    with pytest.raises(ConfigError, match=r"64: cannot be shared by 3 ranks; .* fit are 1, 2, 4, 8, 16, 32, 64"):
        plan_run_size(config, 3)
