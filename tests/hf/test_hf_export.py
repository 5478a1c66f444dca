"""Exports: transformers loads them offline, with equal logits and equal greedy text; memory; safe writing."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, train, train_here, write_toml
from hf_helpers import export_here, greedy, greedy_reference, load_reference, logit_difference, read_weights
from transformers import AutoTokenizer, GenerationConfig

from titan_pt.hf.export import plan_shards
from titan_pt.hf.model_source import open_model_source
from titan_pt.hf.tensor_readers import TensorInfo
from titan_pt.models.transformer import FLAVORS
from titan_pt.tools.export import parse_bytes

LAYOUTS = [(True, True), (True, False), (False, True), (False, False)]
OTHERS_SLOWLY = [pytest.param(*pair, marks=pytest.mark.slow) for pair in LAYOUTS[1:]]
IDS = ["qwen3-tied", "qwen3-untied", "llama-tied", "llama-untied"]


def write_run(folder: Path, qk_norm: bool, tied: bool, **tables: dict) -> Path:
    """A config whose two steps change the weights visibly."""
    return write_toml(
        folder,
        training={"steps": 2},
        optimizer={"lr": 1e-3},
        lr_scheduler={"min_lr_factor": 0.5},
        # Large weights: a greedy text of many different tokens.
        model={"init_std": 0.3, "qk_norm": qk_norm, "tie_embeddings": tied, **tables.pop("model", {})},
        **tables,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and its export while training."""
    folder = tmp_path_factory.mktemp("run")
    config = write_run(folder, True, True, checkpoint={"export_hf_interval": 1})
    assert train_here(config) == 0
    return folder / "run"


def check_export(checkpoint: Path, output: Path, *flags: str) -> None:
    """Export it; transformers computes the same logits and the same 64 greedy tokens."""
    assert export_here(["--checkpoint", str(checkpoint), "--output", str(output), *flags]) == 0
    source = open_model_source(str(checkpoint))
    ours, theirs = source.load("cpu", torch.float32), load_reference(output)
    assert theirs.config.vocab_size == source.tokenizer.vocab_size == 259, "no padding rows"
    assert logit_difference(ours, theirs, 259) < 1e-4, "of logits of 10 to 20"
    prompt = source.tokenizer.encode("12 + 7 =")
    text = greedy(ours, prompt, 64, source.stop_ids)
    assert text == greedy_reference(theirs, prompt, 64) and len(set(text)) > 10


@pytest.mark.parametrize(("qk_norm", "tied"), LAYOUTS, ids=IDS)
def test_transformers_computes_equal_logits(tmp_path: Path, qk_norm: bool, tied: bool) -> None:
    assert train_here(write_run(tmp_path, qk_norm, tied)) == 0
    check_export(tmp_path / "run", tmp_path / "one")
    assert [file.name for file in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]
    check_export(tmp_path / "run" / "checkpoint" / "step-2", tmp_path / "two", "--max_shard_size=250KB")
    names = sorted(file.name for file in (tmp_path / "two").glob("*.safetensors"))
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    one, two = read_weights(tmp_path / "one"), read_weights(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert ("lm_head.weight" in one) == (not tied)


@pytest.mark.parametrize(("qk_norm", "tied"), [LAYOUTS[0], *OTHERS_SLOWLY])
def test_checkpoints_of_two_ranks_are_exported(tmp_path: Path, qk_norm: bool, tied: bool) -> None:
    config = write_run(tmp_path, qk_norm, tied, checkpoint={"export_hf_interval": 2})
    result = train(config, ranks=2)
    assert result.code == 0, result.stderr
    check_export(tmp_path / "run", tmp_path / "one")
    check_export(tmp_path / "run", tmp_path / "two", "--max_shard_size=250KB")
    exported, written = read_weights(tmp_path / "one"), read_weights(tmp_path / "run" / "hf" / "step-2")
    assert exported.keys() == written.keys()
    assert all(torch.equal(exported[name], written[name]) for name in exported), "gathered from both ranks"


def test_a_run_exports_while_it_trains(run: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in (run / "hf").iterdir()) == ["step-1", "step-2"]
    assert export_here(["--checkpoint", str(run), "--output", str(tmp_path / "out")]) == 0
    late, early = read_weights(run / "hf" / "step-2"), read_weights(run / "hf" / "step-1")
    for name, tensor in read_weights(tmp_path / "out").items():
        assert torch.equal(tensor, late[name])
        assert name.endswith("norm.weight") or not torch.equal(tensor, early[name])


def test_a_failed_export_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("titan_pt.hf.export_running.export", full)
    config = write_run(tmp_path, True, True, checkpoint={"export_hf_interval": 1})
    assert train_here(config) == 0
    assert "could not be exported" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint" / "step-2").is_dir()
    monkeypatch.undo()
    assert train_here(config) == 0, "the next start makes up for it, as for one that a kill came before"
    target = tmp_path / "run" / "hf" / "step-2"
    before = (target / "model.safetensors").stat().st_ino
    assert train_here(config) == 0
    assert (target / "model.safetensors").stat().st_ino == before, "not again"


def test_an_export_holds_all_files(run: Path, tmp_path: Path) -> None:
    assert export_here(["--checkpoint", str(run), "--output", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    out = tmp_path / "out"
    assert {tensor.dtype for tensor in read_weights(out).values()} == {torch.bfloat16}
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["torch_dtype"]) == (["Qwen3ForCausalLM"], "bfloat16")
    generation = GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == [256, 258] and generation.suppress_tokens is None
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token_id == 256 and len(tokenizer) == 259
    card = (out / "README.md").read_text()
    assert "| Steps | 2 |" in card and "| Data | arithmetic |" in card and "| Tokens | 4,096 |" in card
    assert str(tmp_path) not in card
    readable = {file.stat().st_mode & 0o777 for file in out.iterdir()}
    assert len(readable) == 1, "weights are no more private than the rest"


def test_an_export_opens_as_the_same_model(run: Path, tmp_path: Path) -> None:
    assert export_here(["--checkpoint", str(run), "--output", str(tmp_path / "out")]) == 0
    step, folder = open_model_source(str(run)), open_model_source(str(tmp_path / "out"))
    assert (step.trainer, folder.trainer, step.knows_chat, folder.knows_chat) == ("pretrain", None, False, False)
    assert step.args.model_copy(update={"vocab_size": 259}) == folder.args
    ours, again = step.load("cpu", torch.float32), folder.load("cpu", torch.float32)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name][: tensor.shape[0]])
    assert dict(folder.named_tensors()).keys() == dict(ours.named_parameters()).keys()
    half = folder.load("cpu", torch.bfloat16)
    assert half.norm.weight.dtype == torch.bfloat16 and half.rope_cos.dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500MB", 5 * 10**8), ("1.5k", 1500), ("7", 7), (" 10 mb ", 10**7)]
)
def test_shard_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "2TB", "1e9", "0.1"])
def test_wrong_shard_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


def test_shards_are_filled_in_order() -> None:
    infos = {name: TensorInfo((size,), torch.float32) for name, size in zip("abcdef", (5, 5, 30, 4, 4, 3), strict=True)}
    assert plan_shards(infos, 40) == [["a", "b"], ["c"], ["d", "e"], ["f"]]


def test_other_folders_are_not_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    flags = ["--checkpoint", str(run), "--output", str(out)]
    out.mkdir()
    assert export_here(flags) == 0, "an empty folder is no loss"
    (out / "old").write_text("x")
    assert export_here(flags) == 2
    assert "exists already; give another folder, or --overwrite" in capsys.readouterr().err
    assert (out / "old").is_file()
    assert export_here([*flags, "--overwrite"]) == 0
    assert not (out / "old").exists() and list(tmp_path.iterdir()) == [out]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    assert export_here([*flags[:3], str(other), "--overwrite"]) == 2
    assert "no Hugging Face folder; it is not overwritten" in capsys.readouterr().err
    assert export_here(["--checkpoint", str(out), "--output", str(out), "--overwrite"]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--checkpoint", str(run), "--output", str(tmp_path / "out"), "--overwrite"]
    assert export_here(flags) == 0

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("titan_pt.hf.export.write_tokenizer", fail)
    assert export_here(flags) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: OSError: [Errno 28] No space left on device"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    load_reference(tmp_path / "out")


def test_what_killed_exports_left_is_removed(run: Path, tmp_path: Path) -> None:
    """By the next export to the same place, unless one is still writing there, and of a run by its next start."""
    left, held = tmp_path / "out.tmp-0123abcd", tmp_path / "out.tmp-89abcdef"
    for folder in (left, held):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
    writing = os.open(held, os.O_RDONLY)
    fcntl.flock(writing, fcntl.LOCK_EX)
    assert export_here(["--checkpoint", str(run), "--output", str(tmp_path / "out")]) == 0
    os.close(writing)
    assert not left.exists() and held.exists()
    assert export_here(["--checkpoint", str(run), "--output", str(tmp_path / "out"), "--overwrite"]) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    of_run = tmp_path / "run" / "hf" / "step-1.tmp-0123abcd"
    of_run.mkdir(parents=True)
    assert train_here(write_run(tmp_path, True, True)) == 0
    assert not of_run.exists()


@pytest.mark.parametrize(
    ("path", "flags", "words"),
    [
        ("nowhere", [], "no such folder"),
        (".", ["--max_shard_size", "big"], "'big' is no size"),
        (".", ["--tokenizer", "nowhere.json"], "no such file"),
        ("tb", [], "holds neither a step-N nor a config.json"),
    ],
)
def test_wrong_arguments_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, flags: list[str], words: str
) -> None:
    (run / "tb").mkdir(exist_ok=True)
    assert export_here(["--checkpoint", str(run / path), "--output", str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("config error: ") and words in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hf_helpers import write_tokenizer

    write_tokenizer(tmp_path)
    assert export_here(["--checkpoint", str(run), "--output", str(tmp_path / "out"), "--tokenizer", str(tmp_path)]) == 2
    assert "was trained with tokenizer byte-259" in capsys.readouterr().err


MEASURE = """
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from titan_pt.hf.export import Exported, export
from titan_pt.hf.tensor_readers import CheckpointTensors
from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.hf.transformer import LAYOUT

folder, args = Path(sys.argv[1]), TransformerArgs.model_validate_json(sys.argv[2])

def peak(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

if sys.argv[3] == "save":
    model = Transformer(args)
    tensors = {f"model.{name}": tensor.detach() for name, tensor in model.named_parameters()}
    dcp.save(tensors, checkpoint_id=folder / "tensors", no_dist=True)
else:
    reader = CheckpointTensors(folder)
    source = Exported(args, LAYOUT, ByteTokenizer(), reader, {}, keep_padding=False, knows_chat=False)
    before = peak("VmRSS")
    export(source, folder / "out", max_shard=int(sys.argv[4]))
    print(peak("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's account of memory")
def test_an_export_takes_memory_of_one_shard(tmp_path: Path) -> None:
    args = FLAVORS["tiny"].model_copy(update={"vocab_size": 1024, "num_tokens": 259, "max_seq_len": 256})
    shard, size = 16 * 10**6, 4 * args.num_parameters

    def measure(*arguments: str) -> str:
        command = [sys.executable, "-c", MEASURE, str(tmp_path), args.model_dump_json(), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    measure("save")
    taken = int(measure("export", str(shard)))
    assert size > 8 * shard
    assert taken < 3 * shard, f"{taken / 1e6:.0f} MB for a shard of {shard / 1e6:.0f} MB of {size / 1e6:.0f} MB"
