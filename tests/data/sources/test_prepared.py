"""Token shards: the same documents, splits and rows as the source they were made of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import texts
from hub_server import write_shards
from row_group_helpers import TEXTS, config_of, quick

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.data.sources.alone import open_alone
from titan_pt.data.sources.identity import KnownFiles
from titan_pt.data.sources.opening import MixtureSource, data_settings
from titan_pt.data.sources.prepared import PreparedDocuments
from titan_pt.data.stream.mixture import TokenizedMixture, tokenize_mixture
from titan_pt.data.stream.stream import Stream
from titan_pt.tools import prepare

__all__ = ["quick"]  # a fixture


def prepared(tmp_path: Path, lines: list[str]) -> tuple[TokenizedMixture, TokenizedMixture]:
    """The mixture of a file and that of its token shards."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    config = config_of(tmp_path, Source(name="web", path=str(tmp_path / "a.jsonl"), max_epochs=2.0))
    prepare.prepare(config, "web", tmp_path / "tokens")
    (plain,) = open_alone(config.data.sources, config)
    sources = [Source(name="web", path=str(tmp_path / "tokens"), max_epochs=2.0)]
    (tokens,) = open_alone(sources, config)
    assert isinstance(tokens.documents, PreparedDocuments)
    return (
        TokenizedMixture([plain], ByteTokenizer(), 1, holdout_fraction=0.2),
        TokenizedMixture([tokens], ByteTokenizer(), 1, holdout_fraction=0.2),
    )


def test_the_rows_are_those_of_the_source(tmp_path: Path) -> None:
    plain, tokens = prepared(tmp_path, [*texts(*range(1, 60)), "", "Größe 北京"])
    for index in range(3):
        ours, theirs = Stream(tokens, index, 3, 50), Stream(plain, index, 3, 50)
        for left, right in zip(ours, theirs, strict=True):
            assert np.array_equal(left.tokens, right.tokens) and left.documents == right.documents
            assert left.num_bytes == right.num_bytes
        assert ours.digest == theirs.digest


def test_large_sources_are_prepared_in_their_order(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    config = config_of(tmp_path, Source(name="web", path=str(tmp_path / "data" / "*.parquet")))
    prepare.prepare(config, "web", tmp_path / "tokens")
    (source,) = open_alone([Source(name="web", path=str(tmp_path / "tokens"))], config)
    assert isinstance(source.documents, PreparedDocuments) and len(source.documents) == 1000
    assert bytes(source.documents.tokens(555).tolist()[:-1]).decode() == TEXTS[555]


def test_wrong_shards_are_told(tmp_path: Path) -> None:
    prepared(tmp_path, list(texts(10, 20)))
    folder = tmp_path / "tokens"
    config: JobConfig = config_of(tmp_path, Source(name="web", path=str(folder)))
    (source,) = open_alone(config.data.sources, config)

    class Other(ByteTokenizer):
        fingerprint = "other"

    with pytest.raises(ConfigError, match="made by another tokenizer"):
        tokenize_mixture([source], data_settings(config, 1), Other())
    for broken in ("tokens.bin", "ends.npy"):
        content = (folder / broken).read_bytes()
        (folder / broken).write_bytes(content[:-8])
        with pytest.raises(ConfigError, match=rf"data source 'web': .*tokens(: not a whole|/{broken}: damaged)"):
            open_alone(config.data.sources, config)
        (folder / broken).write_bytes(content)
    with pytest.raises(ConfigError, match="its path is a folder of token shards already"):
        prepare.prepare(config, "web", tmp_path / "again")
    with pytest.raises(ConfigError, match="did you mean web"):
        prepare.prepare(config, "wep", tmp_path / "again")
    assert isinstance(source, MixtureSource)


def test_an_output_is_made_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared(tmp_path, list(texts(10, 20)))
    config = config_of(tmp_path, Source(name="web", path=str(tmp_path / "a.jsonl")))
    before = (tmp_path / "tokens" / "tokens.bin").stat()
    with caplog.at_level("INFO"):
        prepare.prepare(config, "web", tmp_path / "tokens")
    assert "prepared already" in caplog.text
    other = config_of(tmp_path, Source(name="web", path=str(tmp_path / "b.jsonl")))
    (tmp_path / "b.jsonl").write_text('{"text": "other"}')
    with pytest.raises(ConfigError, match=r"--output .*tokens': holds the token shards of other documents"):
        prepare.prepare(other, "web", tmp_path / "tokens")
    assert (tmp_path / "tokens" / "tokens.bin").stat() == before
    with pytest.raises(ConfigError, match=r"--output .*a\.jsonl': cannot be written to"):
        prepare.prepare(config, "web", tmp_path / "a.jsonl")


def test_an_interrupted_preparation_is_told_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(10, 20, 30)))
    config = config_of(tmp_path, Source(name="web", path=str(tmp_path / "a.jsonl")))

    def killed(_text: str) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "holdout_hash", killed)
        prepare.prepare(config, "web", tmp_path / "tokens")
    with pytest.raises(ConfigError, match="prepare did not finish there; run it again"):
        open_alone([Source(name="web", path=str(tmp_path / "tokens"))], config)
    prepare.prepare(config, "web", tmp_path / "tokens")
    (source,) = open_alone([Source(name="web", path=str(tmp_path / "tokens"))], config)
    assert len(source.documents) == 3


def test_shards_have_nothing_of_unreadable_row_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[Any] = [None if i == 55 else text for i, text in enumerate(TEXTS)]
    write_shards(tmp_path / "data", lines, 3, 10)
    config = config_of(tmp_path, Source(name="web", path=str(tmp_path / "data" / "*.parquet")))
    prepare.prepare(config, "web", tmp_path / "tokens")
    documents = PreparedDocuments(tmp_path / "tokens", KnownFiles(None))
    assert [i for i in range(1000) if not len(documents.tokens(i))] == list(range(50, 60))
    assert "given up, 10 documents are empty for it" in caplog.text
