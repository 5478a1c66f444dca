"""Streamed documents for the tests: a hub on loopback, configs that read from it, and a patience of milliseconds."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_helpers import ThreadWorld, texts
from hub_server import HubServer, serving, write_shards

from titan_pt.config.schema.job_config import Data, Job, JobConfig, Source, Training, Validation
from titan_pt.data.remote.retry import Patience
from titan_pt.data.remote.row_group_documents import RowGroupDocuments
from titan_pt.data.sources.opening import open_mixture

# A loaded machine may take a second to answer: only tests of stalls give up sooner.
QUICK = Patience(attempt_seconds=10.0, first_pause_seconds=0.01, longest_pause_seconds=0.05, start_seconds=20)
TEXTS = list(texts(*[random.Random(i).randrange(5, 60) for i in range(1000)], name="d"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titan_pt.data.remote.sources.Patience", lambda **_: QUICK)
    monkeypatch.setattr("titan_pt.data.remote.block_order.BLOCK_ROWS", 50)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    write_shards(tmp_path / "repo" / "sample" / "10BT", TEXTS, 3, 10)
    with serving(tmp_path / "repo") as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server


def config_of(folder: Path, *sources: Source, streams: int = 4, **data: Any) -> JobConfig:
    return JobConfig(
        job=Job(dump_folder=str(folder / "run")),
        training=Training(seq_len=64, global_batch_size=8, local_batch_size=1),
        data=Data(
            sources=list(sources),
            num_streams=streams,
            prefetch_steps=0,
            cache_dir=str(folder / "cache"),
            seed=1,
            **data,
        ),
        validation=Validation(holdout_fraction=0.0),
    )


def open_row_groups(config: JobConfig) -> RowGroupDocuments:
    (source,) = open_mixture(config.data.sources, config, ThreadWorld())
    assert isinstance(source.documents, RowGroupDocuments)
    return source.documents
