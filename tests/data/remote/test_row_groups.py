"""Row groups: listings, the order of blocks, the cache; local files, plain addresses and a hub on loopback."""

import hashlib
import json
import logging
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import ThreadWorld, on_ranks, texts
from hub_server import COMMIT, HubServer, no_fault, serving, write_shards
from row_group_helpers import TEXTS, config_of, hub, open_row_groups, quick

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.builtin_datasets import BUILTIN_DATASETS
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Source, Training
from titan_pt.data.remote.cache import SpillCache
from titan_pt.data.remote.download import damaged_downloads
from titan_pt.data.remote.listing import expand
from titan_pt.data.remote.row_group_documents import RowGroupDocuments
from titan_pt.data.remote.row_groups import Listing, RowGroupFile
from titan_pt.data.sources.identity import KnownFiles
from titan_pt.data.sources.opening import MixtureSource, open_mixture
from titan_pt.data.stream.loader import DataLoader, build_dataloader
from titan_pt.data.stream.mixture import TokenizedMixture
from titan_pt.data.stream.stream import Stream
from titan_pt.data.truth_table import plan_mixture

__all__ = ["hub", "quick"]  # fixtures


def documents_of(stream: Stream, count: int | None = None) -> list[str]:
    found = []
    while (piece := stream._next_document(0)) is not None and (count is None or len(found) < count):
        found.append(piece.document)
    return found


def test_local_parquet_is_read_by_row_group(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    config = config_of(tmp_path, Source(name="web", path=str(tmp_path / "data" / "*.parquet")))
    documents = open_row_groups(config)
    assert documents.by_row_group and len(documents.listing) == 102 and len(documents) == 1000
    assert [documents[i] for i in range(1000)] == TEXTS
    few = config_of(tmp_path, Source(name="web", path=str(tmp_path / "data" / "*.parquet")), streams=8)
    few = few.model_copy(update={"training": Training(seq_len=64, global_batch_size=16, local_batch_size=1)})
    few = few.model_copy(update={"data": few.data.model_copy(update={"num_streams": 16})})
    (converted,) = open_mixture(few.data.sources, few, ThreadWorld())
    assert not isinstance(converted.documents, RowGroupDocuments) and len(converted.documents) == 1000


@pytest.mark.parametrize("num_streams", [1, 3, 4, 12])
def test_streams_share_out_every_epoch(tmp_path: Path, num_streams: int) -> None:
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    documents = open_row_groups(config_of(tmp_path, Source(name="web", path=str(tmp_path / "data" / "*.parquet"))))
    source = MixtureSource("web", documents, 1.0, max_epochs=2.0)
    mixture = TokenizedMixture([source], ByteTokenizer(), 7)
    found = [documents_of(Stream(mixture, s, num_streams, 8)) for s in range(num_streams)]
    assert Counter(name for part in found for name in part) == Counter({f"web:{i}": 2 for i in range(1000)})
    first = found[0][:50]
    numbers = [int(name.removeprefix("web:")) for name in first]
    assert len({number // 10 for number in numbers[:20]}) >= 4, "the rows of several units are mixed"
    half = len(found[0]) // 2
    assert sorted(found[0][:half]) != sorted(found[0][half:]) or num_streams == 1, "dealt anew in every epoch"
    assert found[0][:half] != found[0][half:]
    other_seed = Stream(TokenizedMixture([source], ByteTokenizer(), 8), 0, num_streams, 8)
    assert documents_of(other_seed, 30) != first[:30]


def test_the_held_out_split_is_by_row_group(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    documents = open_row_groups(config_of(tmp_path, Source(name="web", path=str(tmp_path / "data" / "*.parquet"))))
    source = MixtureSource("web", documents, 1.0, max_epochs=1.0)
    sides = [
        documents_of(Stream(TokenizedMixture([source], ByteTokenizer(), 7, fraction, held_out), 0, 1, 8))
        for fraction in (0.001, 0.1)
        for held_out in (False, True)
    ]
    for train, validation in (sides[:2], sides[2:]):
        assert not set(train) & set(validation) and len(train) + len(validation) == 1000
    assert 9 <= len(sides[1]) <= 10, "one unit at least"
    assert set(sides[1]) <= set(sides[3]), "a larger share holds the smaller one"


def test_a_dataset_of_the_hub_is_streamed(tmp_path: Path, hub: HubServer) -> None:
    config = config_of(tmp_path, Source(name="fineweb_edu"))
    documents = open_row_groups(config)
    assert documents.listing.origin == f"HuggingFaceFW/fineweb-edu@{COMMIT}"
    assert [documents[i] for i in (0, 555, 999)] == [TEXTS[0], TEXTS[555], TEXTS[999]]
    listed = hub.requests["listing"]
    assert listed == 1
    before = hub.requests["file"]
    again = open_row_groups(config)
    assert again.fingerprint == documents.fingerprint and again[555] == TEXTS[555]
    assert hub.requests["listing"] == listed, "the run keeps to its files"
    assert hub.requests["file"] == before, "footers and units are on disk"
    text_bytes = sum(len(text) for text in TEXTS)
    assert text_bytes < 100_000


def test_one_rank_lists_for_all(tmp_path: Path, hub: HubServer) -> None:
    config = config_of(tmp_path, Source(name="fineweb_edu"))

    def run(world: ThreadWorld) -> str:
        return open_mixture(config.data.sources, config, world)[0].documents.fingerprint

    assert len(set(on_ranks(4, run))) == 1
    assert hub.requests["listing"] == 1
    assert hub.requests["file"] <= 4, "three footers, and one row group to look at"


def test_a_small_dataset_is_read_at_the_start(tmp_path: Path, hub: HubServer) -> None:
    hub.card = {"configs": [{"config_name": "few", "data_files": [{"split": "train", "path": "few/*.parquet"}]}]}
    write_shards(tmp_path / "repo" / "few", TEXTS[:100], 1, 25)
    config = config_of(tmp_path, Source(name="mine", dataset="me/mine"))
    documents = open_row_groups(config)
    assert not documents.by_row_group and len(documents) == 100
    before = hub.requests["file"]
    assert [documents[i] for i in range(100)] == TEXTS[:100]
    assert hub.requests["file"] == before
    for options, reason in (
        ({"subset": "many"}, "subset = 'many': me/mine has few"),
        ({"split": "dev"}, "split = 'dev': it has train"),
        ({"text_field": "body"}, "no column 'body'; it has id, other, text"),
    ):
        with pytest.raises(ConfigError, match=reason):
            open_row_groups(config_of(tmp_path / "other", Source(name="mine", dataset="me/mine", **options)))


def test_other_datasets_keep_to_a_commit_too(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are downloaded whole, at the commit that the run began with."""
    (tmp_path / "repo" / "train.jsonl").write_text('{"text": "a"}')
    hub.card = {"configs": [{"config_name": "default", "data_files": "train.jsonl"}]}
    wished = []

    def download(source: Source, *_: Any) -> Any:
        wished.append(source.revision)
        documents = texts(5, 6)
        documents.fingerprint = str(source.revision)
        return documents

    monkeypatch.setattr("titan_pt.data.remote.sources.downloaded_dataset", download)
    config = config_of(tmp_path, Source(name="medqa"))
    for _ in range(2):
        (source,) = open_mixture(config.data.sources, config, ThreadWorld())
        assert source.documents.fingerprint == COMMIT
    assert wished == [COMMIT] * 2 and hub.requests["listing"] == 1


def test_a_download_is_tried_again(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` gives up after some seconds; a network that is away for longer is no error of the config."""
    (tmp_path / "repo" / "train.jsonl").write_text('{"text": "a"}')
    hub.card = {"configs": [{"config_name": "default", "data_files": "train.jsonl"}]}
    failures = [
        ConnectionError("Couldn't reach the Hub"),
        type("ReadTimeout", (Exception,), {"__module__": "httpx"})("slow"),
        TimeoutError("slower"),
    ]

    def download(source: Source, *_: Any) -> Any:
        if failures:
            try:
                raise failures.pop()
            except Exception as error:
                raise RuntimeError("an error occurred while generating the dataset") from error
        return texts(5, 6)

    monkeypatch.setattr("titan_pt.data.remote.sources.downloaded_dataset", download)
    config = config_of(tmp_path, Source(name="medqa"))
    (source,) = open_mixture(config.data.sources, config, ThreadWorld())
    assert len(source.documents) == 2 and not failures
    failures.append(ValueError("a row of another kind"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'medqa': cannot be read: ValueError: a row of another kind"):
        open_mixture(config.data.sources, config, ThreadWorld())


def test_addresses_of_parquet_files(tmp_path: Path, hub: HubServer) -> None:
    assert list(expand("a{08..10}b{1..2}")) == ["a08b1", "a08b2", "a09b1", "a09b2", "a10b1", "a10b2"]
    path = f"{hub.url}/sample/10BT/{{000..002}}_00000.parquet"
    documents = open_row_groups(config_of(tmp_path, Source(name="web", path=path)))
    assert len(documents) == 1000 and documents[999] == TEXTS[999]
    for bad, reason in ((f"{hub.url}/x.jsonl", "must be of a .parquet file"), (f"{hub.url}/x.parquet", "HTTP 404")):
        with pytest.raises(ConfigError, match=reason):
            open_row_groups(config_of(tmp_path / "bad", Source(name="web", path=bad)))


def test_files_of_the_same_name_in_several_folders(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "files" / f"part{i}").mkdir(parents=True)
        table = pa.table({"text": TEXTS[i * 10 : i * 10 + 10]})
        pq.write_table(table, tmp_path / "files" / f"part{i}" / "train.parquet")
    with serving(tmp_path / "files") as server:
        config = config_of(tmp_path, Source(name="web", path=f"{server.url}/part{{0..2}}/train.parquet"))
        documents = open_row_groups(config)
        assert [documents[i] for i in range(30)] == TEXTS[:30]
        assert [file.name for file in documents.listing.files] == [f"part{i}/train.parquet" for i in range(3)]
        config = config_of(tmp_path, Source(name="web", path=f"{server.url}/part{{2..0}}/train.parquet"))
        with pytest.raises(ConfigError, match="stands for no address"):
            open_row_groups(config)


@pytest.mark.parametrize("kept", [True, False], ids=["cached footers", "no cache"])
@pytest.mark.parametrize("longer", [True, False], ids=["longer", "same length"])
def test_a_file_replaced_before_a_resume_is_reported(tmp_path: Path, kept: bool, longer: bool) -> None:
    def write(texts: list[str]) -> None:
        table = pa.table({"text": texts})
        pq.write_table(table, tmp_path / "files" / "a.parquet", row_group_size=10, compression="none")

    (tmp_path / "files").mkdir()
    write(TEXTS)
    with serving(tmp_path / "files") as server:
        config = config_of(tmp_path, Source(name="web", path=f"{server.url}/a.parquet"))
        world, run_size = ThreadWorld(), plan_run_size(config, 1)
        data = build_dataloader(config, ByteTokenizer(), world, run_size)
        data.next_batch()
        data.close()
        write([text.upper() + "!" * longer for text in TEXTS])
        if not kept:  # moved, not removed: readers that were closed may still be about to write there
            (tmp_path / "cache").rename(tmp_path / "before")
        with pytest.raises(ConfigError, match=r"a\.parquet.* changed since the run began.*units\.json"):
            build_dataloader(config, ByteTokenizer(), world, run_size)


@pytest.mark.parametrize("longer", [True, False], ids=["longer", "same length"])
def test_a_file_replaced_during_a_run_is_reported(tmp_path: Path, longer: bool) -> None:
    (tmp_path / "files").mkdir()
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "files" / "a.parquet", row_group_size=10)
    with serving(tmp_path / "files") as server:
        config = config_of(tmp_path, Source(name="web", path=f"{server.url}/a.parquet"))
        data = build_dataloader(config, ByteTokenizer(), ThreadWorld(), plan_run_size(config, 1))
        data.next_batch()
        content = (tmp_path / "files" / "a.parquet").read_bytes()
        pq.write_table(pa.table({"text": TEXTS[::-1]}), tmp_path / "files" / "a.parquet", row_group_size=10)
        other = (tmp_path / "files" / "a.parquet").read_bytes()
        padded = other[:4] + bytes(max(0, len(content) - len(other))) + other[4:]
        (tmp_path / "files" / "a.parquet").write_bytes(other + b"!" if longer else padded[: len(content)])
        with pytest.raises(ConfigError, match=r"a\.parquet.* (has .* bytes now|is another file now).*units\.json"):
            for _ in range(1000):
                data.next_batch()
        data.close()


def test_a_resume_does_not_wait_for_a_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It would only ask whether the files are still the same; the loader has a limit of its own, and exit code 75."""
    (tmp_path / "files").mkdir()
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "files" / "a.parquet", row_group_size=10)
    with serving(tmp_path / "files") as server:
        config = config_of(tmp_path, Source(name="web", path=f"{server.url}/a.parquet"))
        first = open_row_groups(config)
        assert first[0] == TEXTS[0]
        server.down = True
        assert open_row_groups(config)[0] == TEXTS[0]
        assert "whether its files are still the same is seen later" in caplog.text


def test_a_bad_first_row_group_does_not_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A text is missing in the first row group, which the start looks at; in three of them it is no accident."""
    path = str(tmp_path / "data" / "*.parquet")
    for missing, readable in (([3], True), ([3, 13, 23], False)):
        texts: list[Any] = [None if i in missing else text for i, text in enumerate(TEXTS)]
        write_shards(tmp_path / "data", texts, 3, 10)
        config = config_of(tmp_path, Source(name="web", path=path))
        if readable:
            data = build_dataloader(config, ByteTokenizer(), ThreadWorld(), plan_run_size(config, 1))
            assert plan_mixture(data.mixture, 1000)[0].tokens_per_epoch > 1000
            assert "row group 0: row 3: 'text' is null" in caplog.text and "the next one is looked at" in caplog.text
            continue
        with pytest.raises(ConfigError, match=r"'web': cannot be read: 000_00000.parquet, row group 2: row 3: .* null"):
            open_row_groups(config)


def test_a_remote_file_without_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "files" / "a.parquet")
    with serving(tmp_path / "files") as server, pytest.raises(ConfigError, match="'web': holds no documents"):
        open_row_groups(config_of(tmp_path, Source(name="web", path=f"{server.url}/a.parquet")))


def test_a_changed_manifest_is_told(tmp_path: Path, hub: HubServer) -> None:
    config = config_of(tmp_path, Source(name="fineweb_edu"))
    open_row_groups(config)
    path = tmp_path / "run" / "data" / "units.json"
    content = path.read_text()
    path.write_text(content.replace('"size": ', '"size": 1'))
    with pytest.raises(ConfigError, match=r"units\.json: damaged: .*checksum does not hold"):
        open_row_groups(config)


def test_a_manifest_that_is_no_json_is_made_anew(
    tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, Source(name="fineweb_edu"))
    open_row_groups(config)
    path = tmp_path / "run" / "data" / "units.json"
    content = path.read_text()
    path.write_text("[" * 100_000)
    open_row_groups(config)
    assert "units.json: damaged: nested too deeply" in caplog.text and path.read_text() == content


def test_a_signed_address_is_the_same_however_it_is_signed(
    tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its listing, its cache nor its name in a checkpoint has the signature, and a resume may have another."""
    path = hub.url + "/sample/10BT/00{0..1}_00000.parquet?sv=1&sig="
    first = open_row_groups(config_of(tmp_path, Source(name="web", path=path + "S3CRET")))
    asked = hub.requests["file"]
    again = open_row_groups(config_of(tmp_path, Source(name="web", path=path + "0THER&se=2")))
    assert [*again.iterate()] == [*first.iterate()]
    assert again.listing.files[0].location.endswith("sig=0THER&se=2")
    listed = hub.requests["file"] - asked
    written = [*(tmp_path / "run").rglob("*.json*"), *(tmp_path / "cache").rglob("*")]
    kept = "".join(p.read_bytes().decode("latin-1") for p in written if p.is_file())
    told = str([again.contents, first.contents, again.place(3), first.fingerprint])
    assert "S3CRET" not in kept + told and "0THER" not in kept + told and listed > 0
    plain = open_row_groups(config_of(tmp_path / "plain", Source(name="web", path=path[:-5].rstrip("?"))))
    assert [*plain.iterate()] == [*first.iterate()]


WORDS = [f"{i} {'word ' * 100}" for i in range(60)]


def write_plain_shards(folder: Path) -> None:
    for i in range(3):
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"text": WORDS[i * 20 : i * 20 + 20]})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=5, compression="none", use_dictionary=False)


def documents_with(hub: HubServer, config: JobConfig, kind: str, every: int, least: int = 0) -> list[str]:
    """The texts of a source, of which the server damages every so many answers, the first `least` of files aside."""
    hub.fault = lambda path, count: kind if count > least and count % every == 0 and path.endswith("parquet") else ""
    try:
        return list(open_row_groups(config).iterate())
    finally:
        hub.fault = no_fault


@pytest.mark.parametrize("publishes_sha256", [False, True])
def test_wrong_bytes_of_the_hub_are_told_by_its_hashes(
    tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture, publishes_sha256: bool
) -> None:
    hub.publishes_sha256 = publishes_sha256
    shutil.rmtree(tmp_path / "repo" / "sample")
    write_plain_shards(tmp_path / "repo" / "sample" / "10BT")
    config = config_of(tmp_path, Source(name="fineweb_edu"))
    assert documents_with(hub, config, "flip", every=2) == WORDS
    assert hub.faults["flip"] > 0 and "its bytes are not those that the hub has the hash of" in caplog.text
    asked = hub.requests["file"]
    assert list(open_row_groups(config).iterate()) == WORDS and hub.requests["file"] == asked, "all is in the cache"


def test_wrong_bytes_of_a_download_are_told_by_their_names(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "datasets--a--b"
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "blobs").mkdir()
    content, source, known = b'{"text": "word"}', Source(name="x", dataset="a/b"), KnownFiles(str(tmp_path / "cache"))
    names = [hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob 16\0" + content).hexdigest()]
    for name in names:
        (folder / "blobs" / name).write_bytes(content)
        (folder / "snapshots" / "c0ffee" / f"{len(name)}.json").symlink_to(folder / "blobs" / name)
    assert damaged_downloads(source, "c0ffee", known) == []
    for name in names:
        (folder / "blobs" / name).write_bytes(content.replace(b"word", b"wopd"))
    assert [file.name for file in damaged_downloads(source, "c0ffee", known)] == sorted(names)
    assert damaged_downloads(source, "another", known) == []


def test_wrong_bytes_of_a_server_are_told_by_a_second_read(
    tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a hash or checksums of pages, wrong letters are letters; `data.verify = "always"` reads them again."""
    write_plain_shards(tmp_path / "repo")
    source = Source(name="web", path=hub.url + "/{0..2}.parquet")
    found = documents_with(hub, config_of(tmp_path / "auto", source), "flip", every=5, least=3)
    assert sum(one != other for one, other in zip(found, WORDS, strict=True)) > 0, "nothing can tell"
    assert documents_with(hub, config_of(tmp_path / "no", source), "no text", every=5, least=3) == WORDS
    assert "is not UTF-8" in caplog.text
    config = config_of(tmp_path / "always", source, verify="always")
    assert documents_with(hub, config, "flip", every=5) == WORDS
    assert "were others when they were read again" in caplog.text


def test_lists_without_end_and_footers_that_lie_are_refused(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, Source(name="fineweb_edu"))
    with (
        monkeypatch.context() as patch,
        pytest.raises(ConfigError, match=r"an answer of more than 100 bytes \(8 times\)"),
    ):
        patch.setattr("titan_pt.data.remote.hub.MOST_BYTES", 100)
        open_row_groups(config)
    hub.card = {"configs": 7}
    with pytest.raises(ConfigError, match="does not say which files"):
        open_row_groups(config_of(tmp_path, Source(name="other", dataset="a/b")))
    for name, value, reason in (
        ("remote.row_groups._MOST_ROWS", 9, "a row group has 10 rows by its footer, and at most 9"),
        ("remote.parquet._MOST_FOOTER_BYTES", 100, "its footer is longer than the 100 bytes"),
        ("remote.parquet.MOST_GROUP_BYTES", 100, "unpacks to more than 10 rows or 100 bytes"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match=reason):
            patch.setattr(f"titan_pt.data.{name}", value)
            open_row_groups(config)
    open_row_groups(config)
    with pytest.raises(ConfigError, match="stands for more than 1,000,000 addresses"):
        open_row_groups(config_of(tmp_path, Source(name="web", path=hub.url + "/a{0..9999999}{0..999999999}.parquet")))


def test_a_listing_comes_back_from_json() -> None:
    listing = Listing("x", (RowGroupFile("a", "/a", 10, "i", (3, 4)), RowGroupFile("b", "/b", 10, "j", (5,))))
    again = Listing.from_json(json.loads(json.dumps(listing.to_json())))
    assert again == listing and again.fingerprint == listing.fingerprint
    assert [listing.row_group_of(row) for row in (0, 2, 3, 6, 7, 11)] == [0, 0, 1, 1, 2, 2]
    moved = Listing(
        "x", tuple(RowGroupFile(f.name, "/else" + f.location, f.size, f.identity, f.rows) for f in listing.files)
    )
    assert moved.fingerprint == listing.fingerprint


def test_the_cache_is_bounded_and_shared(tmp_path: Path) -> None:
    cache, stop = SpillCache(tmp_path, 1640), threading.Event()
    made = Counter[str]()

    def make(key: str) -> bytes:
        made[key] += 1
        return b"x" * 100

    for i in range(30):
        cache.content(f"{i:064d}", lambda i=i: make(str(i)), stop)
        cache.content(f"{0:064d}", lambda: make("0"), stop)
    held = [path for path in tmp_path.glob("??/*") if path.suffix != ".lock"]
    assert sum(path.stat().st_size for path in held) <= 1640 + 164
    assert made["0"] == 1 and made["29"] == 1, "what is used stays"
    assert cache.content(f"{1:064d}", lambda: make("1"), stop).to_pybytes() == b"x" * 100 and made["1"] == 2
    key = "f" * 64
    threads = [threading.Thread(target=cache.content, args=(key, lambda: make("f"), stop)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made["f"] == 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "a letter"])
def test_a_damaged_cache_file_is_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    paths = write_shards(tmp_path / "data", TEXTS, 3, 10)
    config = config_of(tmp_path, Source(name="web", path=str(tmp_path / "data" / "*.parquet")))
    first = open_row_groups(config)
    assert first[0] == TEXTS[0]
    for file in (tmp_path / "cache" / "units").glob("??/*"):
        content = file.read_bytes()
        other = content.replace(TEXTS[0].encode(), TEXTS[0].upper().encode())
        file.write_bytes({"cut": content[:50], "emptied": b"", "a letter": other}[damage])
    with caplog.at_level(logging.WARNING):
        assert open_row_groups(config)[0] == TEXTS[0]
    assert "is damaged; it is made anew" in caplog.text
    assert pq.ParquetFile(paths[0]).num_row_groups == 34


def test_an_unwritable_cache_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    config = config_of(tmp_path, Source(name="web", path=str(tmp_path / "data" / "*.parquet")))
    (tmp_path / "cache2").write_text("not a folder")
    other = config.model_copy(update={"data": config.data.model_copy(update={"cache_dir": str(tmp_path / "cache2")})})
    found = open_row_groups(other)
    assert [found[i] for i in range(0, 100, 10)] == TEXTS[0:100:10], "without a cache it is only slower"
    assert caplog.text.count("cannot be used") == 1


def test_row_groups_through_the_loader(tmp_path: Path, hub: HubServer) -> None:
    """Two epochs of a streamed source over four ranks: every document twice, its state as plain JSON."""
    config = config_of(tmp_path, Source(name="fineweb_edu", max_epochs=2.0))

    def run(world: ThreadWorld) -> list[str]:
        data: DataLoader = build_dataloader(config, ByteTokenizer(), world, plan_run_size(config, world.size))
        found: list[str] = []
        while (batch := data.next_batch()) is not None:
            found += batch.documents
            data.commit(batch)
            data.load_state_dict(json.loads(json.dumps(data.state_dict())))
        data.close()
        return found

    found = on_ranks(4, run)
    assert {name for part in found for name in part} == {f"fineweb_edu:{i}" for i in range(1000)}


@pytest.mark.parametrize(
    ("name", "subset", "file"),
    [
        ("climbmix", None, "shard_00042.parquet"),
        ("climbmix", "all", "shard_06542.parquet"),
        ("dclm", None, "filtered/some/model/processed/shard_0.parquet"),
        ("finemath", None, "finemath-4plus/train-00000-of-00064.parquet"),
        ("finemath", "infiwebmath-3plus", "infiwebmath-3plus/train-00000-of-00104.parquet"),
        ("open_web_math", None, "data/train-00000-of-00114-5a.parquet"),
    ],
)
def test_the_built_in_datasets(
    tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture, name: str, subset: str | None, file: str
) -> None:
    """By name alone: the files of the subset and no others, at a revision of the user's; the licence is told."""
    shutil.rmtree(hub.folder)
    path = write_shards(hub.folder / "x", TEXTS[:60], 1, 20)[0]
    if name != "dclm":  # all of it
        write_shards(hub.folder / "elsewhere", TEXTS[:30], 1, 20)
    (hub.folder / file).parent.mkdir(parents=True, exist_ok=True)
    path.rename(hub.folder / file)
    with caplog.at_level("INFO", logger="titan_pt"):
        documents = open_row_groups(config_of(tmp_path, Source(name=name, subset=subset, revision="main")))
    builtin = BUILTIN_DATASETS[name]
    assert documents.listing.origin == f"{builtin.dataset}@{COMMIT}"
    assert [documents[i] for i in range(len(documents))] == TEXTS[:60]
    assert f"{builtin.licence}, as far as known" in caplog.text


def test_the_licence_of_a_dataset_is_that_of_its_card(
    tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    hub.card = {"license": "odc-by"}
    with caplog.at_level("INFO", logger="titan_pt"):
        open_row_groups(config_of(tmp_path, Source(name="fineweb_edu")))
    assert f"Dataset HuggingFaceFW/fineweb-edu@{COMMIT[:8]}: licence odc-by by its card" in caplog.text
