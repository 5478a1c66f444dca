"""Validation: the same rows and the same loss each time, whatever the micro-batch and the number of ranks."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_helpers import Texts, ThreadWorld, mixture_of, on_ranks, texts

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import Data, JobConfig, Source, Training, Validation
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.stream.batch import IGNORED, MicroBatch, collate
from titan_pt.data.stream.loader import DataLoader
from titan_pt.data.stream.row import padding_row
from titan_pt.data.stream.stream import Stream
from titan_pt.distributed.world import World
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.validate import LossValidator, build_validator, validation_rows

DOCUMENTS = texts(*[20 + 7 * (i % 13) for i in range(120)])
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "intermediate_size": 48}


def validation(**options: Any) -> Validation:
    return Validation(**{"enable": True, "holdout_fraction": 0.3, "local_batch_size": 2, **options})


def parts(
    world: World | None = None,
    documents: list[MixtureSource] | None = None,
    options: Validation | None = None,
    cache: Path | None = None,
) -> Any:
    """What a validator is built from."""
    world = world or ThreadWorld()
    training = Training(seq_len=24, local_batch_size=2, global_batch_size=2 * world.size, document_mask=True)
    data = Data(cache_dir=str(cache) if cache else None)
    config = JobConfig(training=training, data=data, validation=options or validation())
    run_size = plan_run_size(config, world.size)
    mixture = documents or [MixtureSource("a", DOCUMENTS, 1.0)]
    fraction = 0.0 if config.validation.sources else config.validation.holdout_fraction
    loader = DataLoader(
        mixture_of(*mixture, holdout_fraction=fraction, seed=config.debug.seed), run_size, world, config
    )
    model = Transformer(TransformerArgs(**SMALL, vocab_size=320), document_mask=True)
    model.init_weights(seed=3)
    return SimpleNamespace(
        config=config,
        world=world,
        run_size=run_size,
        tokenizer=ByteTokenizer(),
        model=model,
        dataloader=loader,
        raise_if_preempted=lambda: None,
    )


def built(made: Any) -> LossValidator:
    validator = build_validator(made)
    assert isinstance(validator, LossValidator)
    return validator


def problem(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_validator(parts(**options))
    return str(caught.value)


def test_off() -> None:
    assert build_validator(parts(options=validation(enable=False))) is None


def test_two_rounds_give_the_identical_loss() -> None:
    made = parts()
    validator = built(made)
    made.model.train()
    first = validator()
    assert made.model.training, "left as it was"
    made.dataloader.next_batch()  # training goes on between validations
    assert validator() == first
    assert built(parts())() == first
    made.model.eval()
    assert validator() == first and not made.model.training


def test_loss_perplexity_and_bits_per_byte() -> None:
    made = parts()
    rows = validation_rows(made)
    losses, kept = [], 0
    for row in rows:
        tokens, positions = torch.from_numpy(row.tokens)[None], torch.from_numpy(row.positions)[None]
        logits = made.model(tokens[:, :-1], positions[:, :-1])[0, : row.num_targets]
        losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1 : row.num_tokens], reduction="sum").item())
        kept += row.num_targets
    num_bytes = sum(int(token) < 256 for row in rows for token in row.tokens[1 : row.num_tokens])
    values = built(made)()
    assert values["val_loss"] == pytest.approx(sum(losses) / kept, rel=1e-5)
    assert values["val_perplexity"] == pytest.approx(math.exp(values["val_loss"]))
    assert values["val_bpb"] == pytest.approx(sum(losses) / math.log(2) / num_bytes, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("local", [1, 3, 64])
def test_the_loss_depends_neither_on_micro_batches_nor_on_ranks(size: int, local: int) -> None:
    """Every rank runs the same number of micro-batches, or FSDP's collectives would wait for ever."""
    options = validation(local_batch_size=local)
    validators = on_ranks(size, lambda world: built(parts(world, options=options)))
    assert len({len(validator.batches) for validator in validators}) == 1
    assert {batch.tokens_BL.shape[0] for validator in validators for batch in validator.batches} == {local}
    values = on_ranks(size, lambda world: built(parts(world, options=options))())
    assert all(value == values[0] for value in values)
    expected = built(parts())()
    for key, value in expected.items():
        assert values[0][key] == pytest.approx(value, rel=1e-5), key


def test_fewer_rows_than_ranks_do_not_hang() -> None:
    few = [MixtureSource("a", Texts(["one short text"]), 1.0)]
    options = validation(holdout_fraction=1.0)
    made = on_ranks(3, lambda world: built(parts(world, few, options)))
    assert [sum(int((batch.targets_BL != IGNORED).sum()) for batch in v.batches) for v in made] == [14, 0, 0]
    values = on_ranks(3, lambda world: built(parts(world, few, options))())
    assert values[0] == values[1] == values[2] and math.isfinite(values[0]["val_loss"])


def test_all_held_out_documents_once_and_none_of_training() -> None:
    sources = [
        MixtureSource("a", DOCUMENTS, 1.0),
        MixtureSource("b", texts(*[40] * 50, name="b"), 9.0, max_epochs=7.0),
    ]
    made = parts(documents=sources)
    rows = validation_rows(made)
    side = made.dataloader.mixture
    expected = {
        f"{source.name}:{i}"
        for source in sources
        for i, text in enumerate(source.documents)
        if not side.has_text(text)  # the training side
    }
    assert {name for row in rows for name in row.documents} == expected
    assert {source for name in expected for source in name[0]} == {"a", "b"}
    tokens = sum(row.num_tokens for row in rows)
    lengths = {f"{s.name}:{i}": len(text) + 1 for s in sources for i, text in enumerate(s.documents)}
    assert tokens == sum(lengths[name] for name in expected)
    batches = [made.dataloader.next_batch() for _ in range(200)]
    assert not {name for batch in batches if batch for name in batch.documents} & expected


def test_steps_limit_the_rows_and_keep_the_mixture() -> None:
    sources = [
        MixtureSource("a", texts(*[60] * 200, name="a"), 3.0),
        MixtureSource("b", texts(*[60] * 200, name="b"), 1.0),
    ]
    made = parts(documents=sources, options=validation(steps=20, holdout_fraction=0.5))
    rows = validation_rows(made)
    assert len(rows) == 20 * made.run_size.rows
    counts = Counter(int(row.sources[0]) for row in rows)
    assert counts[0] / len(rows) == pytest.approx(0.75, abs=0.05)
    every = validation_rows(parts(documents=sources, options=validation(steps=-1, holdout_fraction=0.5)))
    assert len(every) > len(rows)
    assert [row.documents for row in every[: len(rows)]] == [row.documents for row in rows]


def test_sources_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("Held out by hand.\n\n" * 30)
    source = Source(name="val", path=str(tmp_path / "val.txt"))
    made = parts(options=validation(sources=[source]), cache=tmp_path)
    rows = validation_rows(made)
    assert {name for row in rows for name in row.documents} == {"val:0"}
    assert sum(row.num_tokens for row in rows) == len("Held out by hand.\n\n") * 30 + 1
    trained = {name for _ in range(400) if (batch := made.dataloader.next_batch()) for name in batch.documents}
    assert len(trained) == len(DOCUMENTS), "nothing is held out of training"


def test_nothing_to_validate_on_is_told(tmp_path: Path) -> None:
    few = [MixtureSource("a", Texts(["never held out"]), 1.0)]
    assert "validation.holdout_fraction = 1e-09: there is no text" in problem(
        documents=few, options=validation(holdout_fraction=1e-9)
    )
    (tmp_path / "val.txt").write_text("x")  # one byte: nothing but the end of the document is predicted
    tiny = Source(name="val", path=str(tmp_path / "val.txt"))
    assert "validation.sources: there is no text" in problem(options=validation(sources=[tiny]), cache=tmp_path)
    gone = Source(name="val", path=str(tmp_path / "gone*.txt"))
    assert "data source 'val': path" in problem(options=validation(sources=[gone]))


def test_a_document_that_one_rank_cannot_read_is_told_on_all() -> None:
    class Failing(Texts):
        def __getitem__(self, index: Any) -> Any:
            raise ConfigError(f"document {index} is broken")

    def run(world: World) -> str:
        made = parts(world)
        if world.rank == 1:
            made.dataloader.mixture = mixture_of(MixtureSource("a", Failing(DOCUMENTS), 1.0))
        with pytest.raises(ConfigError) as caught:
            build_validator(made)
        return str(caught.value)

    first, second = on_ranks(2, run)
    assert first == second and "is broken" in first


def test_a_signal_ends_a_validation() -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    made = parts()
    made.raise_if_preempted = stop
    with pytest.raises(Stop):
        built(made)()


def test_targets_are_the_next_tokens() -> None:
    source = MixtureSource("a", texts(5, 9, 30), 1.0, max_epochs=1.0)
    rows = list(Stream(mixture_of(source), 0, 1, 12))
    batch = collate([*rows, padding_row(13, 256)])
    for i, row in enumerate(rows):
        kept = row.num_targets
        assert batch.tokens_BL[i].tolist() == row.tokens[:-1].tolist()
        assert batch.targets_BL[i, :kept].tolist() == row.tokens[1 : kept + 1].tolist()
        assert set(batch.targets_BL[i, kept:].tolist()) <= {IGNORED}
        assert batch.positions_BL[i].tolist() == row.positions[:-1].tolist()
    assert set(batch.targets_BL[-1].tolist()) == {IGNORED}
    assert batch.tokens_BL.is_contiguous() and batch.tokens_BL.dtype == torch.int64
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, MicroBatch) and moved.targets_BL.is_meta
