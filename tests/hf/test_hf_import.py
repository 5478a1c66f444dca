"""Hugging Face folders come in: equal logits, bitwise round trips, training from them, bad folders by their names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import losses, read_tensors, train, train_here, write_toml
from hf_helpers import LLAMA3, export_here, load_reference, logit_difference, read_weights, write_model
from safetensors.torch import load_file, save_file

from titan_pt.config import ConfigError
from titan_pt.hf import tensor_readers
from titan_pt.hf.model_source import open_model_source

SCALED = {"rope_parameters": LLAMA3}
FAMILIES = [(qwen, tied, options) for qwen in (True, False) for tied in (True, False) for options in ({}, SCALED)]
IDS = [
    f"{'qwen3' if qwen else 'llama'}-{'tied' if tied else 'untied'}{'-llama3' if options else ''}"
    for qwen, tied, options in FAMILIES
]


def write_run(folder: Path, source: Path, **tables: dict) -> Path:
    """Two steps from the folder's weights, with its architecture and tokenizer."""
    config = write_toml(
        folder,
        checkpoint={"initial_load_path": str(source), **tables.pop("checkpoint", {})},
        training={"steps": 2, **tables.pop("training", {})},
        **tables,
    )
    text = config.read_text()
    start, end = text.index("[model]"), text.index("[training]")
    config.write_text(f'{text[:start]}[model]\nfrom_hf = "{source}"\n\n{text[end:]}')
    return config


def problems(folder: Path) -> str:
    """What opening the folder says."""
    with pytest.raises(ConfigError) as caught:
        open_model_source(str(folder))
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(("qwen", "tied", "options"), FAMILIES, ids=IDS)
def test_logits_equal_and_the_round_trip_is_bitwise(tmp_path: Path, qwen: bool, tied: bool, options: dict) -> None:
    theirs = write_model(tmp_path / "in", qwen=qwen, tied=tied, shard="150KB", **options)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    source = open_model_source(str(tmp_path / "in"))
    assert (source.args.num_tokens, source.args.vocab_size) == (259, 300)
    ours = source.load("cpu", torch.float32)
    assert logit_difference(ours, theirs, 259) < 2e-5
    assert torch.isinf(ours(torch.zeros(1, 1, dtype=torch.int64))[..., 259:]).all()
    assert export_here(["--checkpoint", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert_equal_folders(tmp_path / "in", tmp_path / "out")
    assert logit_difference(ours, load_reference(tmp_path / "out"), 259) < 2e-5


def assert_equal_folders(one: Path, other: Path) -> None:
    """The same keys, shapes, types and bits."""
    before, after = read_weights(one), read_weights(other)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name


def test_bfloat16_comes_and_goes_unchanged(tmp_path: Path) -> None:
    write_model(tmp_path / "in", qwen=True, tied=True, dtype=torch.bfloat16)
    assert export_here(["--checkpoint", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert_equal_folders(tmp_path / "in", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["torch_dtype"], config["vocab_size"], config["eos_token_id"]) == ("bfloat16", 300, 258)
    suppressed = json.loads((tmp_path / "out" / "generation_config.json").read_text())["suppress_tokens"]
    assert suppressed == list(range(259, 300)), "rows without a token cannot be chosen"
    assert (tmp_path / "out" / "chat_template.jinja").read_text().startswith("{{ bos_token }}")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["bos_token"] == "<|im_start|>"


def test_padding_rows_are_never_generated(tmp_path: Path) -> None:
    model = write_model(tmp_path / "in", qwen=False, tied=False)
    with torch.no_grad():
        model.lm_head.weight[280] = 50 * model.lm_head.weight[:259].abs().max()
        model.model.norm.weight.fill_(1.0)
    model.lm_head.weight.data[280] *= torch.sign(model(torch.tensor([[1]])).logits[0, 0, 280])
    model.save_pretrained(tmp_path / "in")
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    assert load_reference(tmp_path / "in").generate(torch.tensor([[1]]), **options)[0, -1] == 280
    assert export_here(["--checkpoint", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert load_reference(tmp_path / "out").generate(torch.tensor([[1]]), **options)[0, -1] < 259


@pytest.mark.parametrize(("qwen", "tied"), [(True, True), (False, False)])
def test_a_run_imports_and_exports_a_model(tmp_path: Path, qwen: bool, tied: bool) -> None:
    theirs = write_model(tmp_path / "in", qwen=qwen, tied=tied, dtype=torch.bfloat16, shard="50KB")
    config = write_run(tmp_path, tmp_path / "in", training={"steps": 10})
    assert train_here(config, "--training.steps=1", "--optimizer.lr=1e-30") == 0
    stored = read_tensors(tmp_path / "run" / "checkpoint" / "step-1")
    for name, tensor in theirs.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            ours = stored[f"model.{name.removeprefix('model.')}"]
            assert ours.dtype == torch.float32 and torch.equal(ours.bfloat16(), tensor), name
    shutil.rmtree(tmp_path / "run")
    assert train_here(config) == 0
    found = losses(tmp_path / "run")
    assert found[10] < found[1] - 0.2, "it learns"
    flags = ["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--dtype", "bfloat16"]
    assert export_here(flags) == 0
    before, after = read_weights(tmp_path / "in"), read_weights(tmp_path / "out")
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {
        name: (t.shape, t.dtype) for name, t in after.items()
    }
    source = open_model_source(str(tmp_path / "run"))
    assert logit_difference(source.load("cpu", torch.bfloat16).float(), load_reference(tmp_path / "out"), 259) < 2e-5


def test_the_resolved_config_repeats_the_run(tmp_path: Path) -> None:
    write_model(tmp_path / "in", qwen=True, tied=True)
    assert train_here(write_run(tmp_path, tmp_path / "in")) == 0
    again = ["--job.dump_folder", str(tmp_path / "again")]
    assert train_here(tmp_path / "run" / "config.toml", *again) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_two_ranks_start_from_hugging_face_weights(tmp_path: Path) -> None:
    write_model(tmp_path / "in", qwen=True, tied=False)
    result = train(write_run(tmp_path / "two", tmp_path / "in"), ranks=2)
    assert result.code == 0, result.stderr
    assert train_here(write_run(tmp_path / "one", tmp_path / "in")) == 0
    one, two = (losses(tmp_path / name / "run") for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-5)


def test_an_export_starts_a_run_with_its_tokenizer(tmp_path: Path) -> None:
    """Its vocabulary is cut to the tokens, the run's is padded; the ids of the two tokenizers are the same."""
    assert train_here(write_toml(tmp_path / "a", training={"steps": 2})) == 0
    assert export_here(["--checkpoint", str(tmp_path / "a" / "run"), "--output", str(tmp_path / "out")]) == 0
    flags = ["--optimizer.lr=1e-30", "--training.steps=1"]
    loads = {"initial_load_path": str(tmp_path / "out")}
    assert train_here(write_toml(tmp_path / "b", checkpoint=loads), *flags) == 0
    before = read_tensors(tmp_path / "a" / "run" / "checkpoint" / "step-2")
    after = read_tensors(tmp_path / "b" / "run" / "checkpoint" / "step-1")
    for name in [name for name in before if name.startswith("model.")]:
        rows = 259 if "embed_tokens" in name else None
        assert torch.equal(before[name][:rows], after[name][:rows]), name
    assert not after["model.embed_tokens.weight"][259:].any()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.rope_theta=9.0"], "model.rope_theta is 500.0 there and 9.0 here"),
        (["--model.head_dim=64"], "model.head_dim is 32 there and 64 here"),
        (["--model.num_layers=3"], "model.num_layers is 2 there and 3 here"),
    ],
)
def test_a_folder_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    write_model(tmp_path / "in", qwen=True, tied=True)
    same = {"num_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "num_kv_heads": 2}
    model = {**same, "head_dim": 32, "rope_theta": 500.0, "max_seq_len": 256}
    config = write_toml(tmp_path, model=model, checkpoint={"initial_load_path": str(tmp_path / "in")})
    assert train_here(config, *flags) == 2
    error = capsys.readouterr().err
    assert words in error and "set model.from_hf" in error and "Traceback" not in error


def test_config_values_override_those_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "in", qwen=True, tied=True)
    config = write_run(tmp_path, tmp_path / "in")
    assert train_here(config, "--model.rope_theta=9.0") == 0
    assert "model.rope_theta is 500.0 there and 9.0 here" in capsys.readouterr().err
    assert open_model_source(str(tmp_path / "run")).args.rope_theta == 9.0
    shutil.rmtree(tmp_path / "run")
    assert train_here(config, "--model.hidden_size=32") == 2
    error = capsys.readouterr().err
    assert "model.norm.weight: has shape [64], and the model [32]" in error and "model.safetensors" in error


def test_a_tokenizer_with_other_ids_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "in", qwen=True, tied=True)
    config = write_run(tmp_path, tmp_path / "in")
    assert train_here(config, "--tokenizer.name=byte") == 2
    error = capsys.readouterr().err
    assert "gives other ids than tokenizer.name = 'byte'" in error and "set tokenizer.name" in error


def damage_truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_header(folder: Path) -> None:
    (folder / "model-00002-of-00004.safetensors").write_bytes(b"\xff" * 50)


def damage_missing_file(folder: Path) -> None:
    (folder / "model-00002-of-00004.safetensors").unlink()


def damage_wrong_shape(folder: Path) -> None:
    rewrite(folder, lambda tensors: {n: t[:-1] if n == NORM else t for n, t in tensors.items()})


def damage_missing_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != NORM})


def damage_unindexed(folder: Path) -> None:
    damage_missing_tensor(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][NORM]
    index.write_text(json.dumps(content))


def damage_extra_tensor(folder: Path) -> None:
    bias = "model.layers.0.self_attn.q_proj.bias"
    rewrite(folder, lambda tensors: {**tensors, bias: torch.zeros(3)} if NORM in tensors else tensors)


def damage_type(folder: Path) -> None:
    rewrite(folder, lambda tensors: {n: t.to(torch.float8_e4m3fn) if n == NORM else t for n, t in tensors.items()})


def damage_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')


def damage_foreign(folder: Path) -> None:
    rewrite(folder, lambda tensors: {**tensors, "score.weight": torch.ones(1, 64)} if NORM in tensors else tensors)


def damage_prefix(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.write_bytes(file.read_bytes().replace(b"model.layers", b"mudel.layers"))


def damage_twice(folder: Path) -> None:
    rewrite(
        folder, lambda tensors: {**tensors, f"module.{NORM}": tensors[NORM].clone()} if NORM in tensors else tensors
    )


def damage_nan(folder: Path) -> None:
    rewrite(folder, lambda tensors: {n: t * float("nan") if n == NORM else t for n, t in tensors.items()})


def damage_infinite(folder: Path) -> None:
    rewrite(folder, lambda tensors: {n: t / 0 if n == NORM else t for n, t in tensors.items()})


def damage_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 10**17}))


def damage_sizes(folder: Path) -> None:
    """Each within its bound, together above any tensor."""
    config = json.loads((folder / "config.json").read_text())
    sizes = dict.fromkeys(("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"), 2**24)
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))


def damage_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def damage_index_path(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../model.safetensors"}}')


def damage_no_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def damage_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def damage_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))


NORM = "model.norm.weight"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        save_file(change(tensors), file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of four shards."""
    folder = tmp_path_factory.mktemp("whole")
    write_model(folder, qwen=True, tied=True, shard="140KB")
    assert len(list(folder.glob("*.safetensors"))) == 4
    return folder


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncate, ["model-00002-of-00004.safetensors: not a whole safetensors file"]),
        (damage_header, ["model-00002-of-00004.safetensors: not a whole safetensors file"]),
        (damage_missing_file, ["model-00002-of-00004.safetensors: missing", "model.safetensors.index.json names it"]),
        (damage_wrong_shape, [".safetensors: model.norm.weight: has shape [63], and the model [64]"]),
        (damage_missing_tensor, [".safetensors: has no model.norm.weight, which model.safetensors.index.json says"]),
        (damage_unindexed, ["damaged: model.norm.weight: missing"]),
        (damage_extra_tensor, [".safetensors: model.layers.0.self_attn.q_proj.bias: the model has no such tensor"]),
        (damage_type, [".safetensors: model.norm.weight has type F8_E4M3; supported are F64, F32, F16, BF16"]),
        (damage_index, ["model.safetensors.index.json: cannot be read"]),
        (damage_index_path, ["model.safetensors.index.json: x: '../model.safetensors' is not the name of a file"]),
        (damage_foreign, [".safetensors: score.weight: the model has no such tensor"]),
        (
            damage_prefix,
            [": mudel.layers.0.mlp.up_proj.weight: the model has no such tensor", "q_proj.weight: missing"],
        ),
        (damage_twice, ["model.norm.weight: is the same tensor as", "remove one"]),
        (damage_size, [f"config.json: hidden_size = {10**17}: Input should be less than or equal to 16777216"]),
        (damage_sizes, ["config.json: no model can have these sizes"]),
        (damage_adapter, ["adapter_config.json: the folder holds an adapter, which is not read; merge it"]),
        (damage_no_weights, ["has neither model.safetensors nor model.safetensors.index.json"]),
        (damage_no_tokenizer, ["a folder without tokenizer.json"]),
        (damage_vocabulary, ["its tokenizer has 259 tokens and its config.json vocab_size = 200"]),
    ],
)
def test_damaged_folders_are_refused(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "damaged")
    damage(folder)
    text = problems(folder)
    assert all(word in text for word in words), text
    assert export_here(["--checkpoint", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "Traceback" not in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [damage_nan, damage_infinite])
def test_values_that_are_not_finite_are_refused(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ConfigError, match=r"model.norm.weight: 64 of 64 values are not finite"):
        open_model_source(str(folder)).load("cpu", torch.float32)
    assert export_here(["--checkpoint", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "Traceback" not in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [damage_truncate, damage_wrong_shape, damage_missing_file])
def test_a_run_refuses_damaged_folders(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "damaged")
    damage(folder)
    assert train_here(write_run(tmp_path, folder)) == 2
    error = capsys.readouterr().err
    assert "safetensors" in error and "Traceback" not in error
    assert not list((tmp_path / "run" / "checkpoint").iterdir())


def test_a_tied_layer_may_be_stored_twice(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "twice")
    embedding = read_weights(folder)["model.embed_tokens.weight"]
    rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": embedding} if NORM in tensors else tensors)
    assert "lm_head.weight" not in dict(open_model_source(str(folder)).load("cpu", torch.float32).named_parameters())
    assert export_here(["--checkpoint", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "lm_head.weight" not in read_weights(tmp_path / "out")


@pytest.mark.parametrize("row", [0, 1, 63, 258, 259, 299])
def test_every_row_of_a_tied_layer_is_compared(
    whole: Path, tmp_path: Path, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of few rows, from two files: one value of one row tells a merged adapter or an added token."""
    monkeypatch.setattr(tensor_readers, "_COMPARED_BYTES", 7 * 8 * 64)
    folder = shutil.copytree(whole, tmp_path / "other")
    other = read_weights(folder)["model.embed_tokens.weight"].clone()
    rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": other} if NORM in tensors else tensors)
    open_model_source(str(folder))
    other[row, 17] += 0.5
    rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": other} if NORM in tensors else tensors)
    assert "lm_head.weight: is not model.embed_tokens.weight" in problems(folder)


def test_shards_beside_one_file_are_not_read(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one that transformers reads is read, and the log says so."""
    folder = shutil.copytree(whole, tmp_path / "both")
    weights = {name: tensor + 0.01 for name, tensor in read_weights(folder).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert export_here(["--checkpoint", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "model.safetensors is read, as transformers does, and not the shards of" in capsys.readouterr().err
    ours = open_model_source(str(folder)).load("cpu", torch.float32)
    assert logit_difference(ours, load_reference(folder), 259) < 2e-5


@pytest.mark.parametrize("change", ["_orig_mod.{}", "module.{}", "module._orig_mod.{}", "base_model.model.{}", "deep"])
def test_names_of_wrapped_models_are_read(
    whole: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "wrapped")
    weights = read_weights(folder)
    deep = {name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module._orig_mod.") for name in weights}
    renamed = {deep[name] if change == "deep" else change.format(name): t for name, t in weights.items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert export_here(["--checkpoint", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "names of a wrapped model" in capsys.readouterr().err
    assert_equal_folders(whole, tmp_path / "out")


def test_a_tied_layer_with_other_values_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "other")
    other = read_weights(folder)["model.embed_tokens.weight"].flip(1)
    rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": other} if NORM in tensors else tensors)
    assert "lm_head.weight: is not model.embed_tokens.weight, and config.json has tie_word_embeddings" in problems(
        folder
    )
