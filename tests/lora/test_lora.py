"""Adapters of low rank: their numbers, runs of fine-tuning and reinforcement learning, and folders of PEFT."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from helpers import assert_same_step, losses, read_json, read_rows, read_tensors, train, train_here
from hf_helpers import export_here, write_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import load_config
from titan_pt.config.schema.lora import LINEARS, Lora
from titan_pt.hf.model_source import open_model_source
from titan_pt.lora.adapters import add_adapters
from titan_pt.lora.folders import fingerprint_of
from titan_pt.models.transformer import Transformer, TransformerArgs


def tiny(options: Lora, dtype: torch.dtype = torch.float64) -> tuple[Transformer, Any]:
    """(a model of random weights with random adapters, the adapters)"""
    args = TransformerArgs(
        vocab_size=64, num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48
    )
    config = load_config(["--training.mixed_precision_param", "float32", "--data.sources", '[{name = "arithmetic"}]'])
    with torch.device("meta"):
        model: Any = Transformer(args)
    add_adapters(model, config, options)
    model.to_empty(device="cpu")
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.adapters.modules.values():
            module.lora_B.weight.normal_(generator=generator)
    return model.to(dtype), model.adapters


def test_adapters_are_the_merged_weights() -> None:
    """Logits, and gradients of A and B, which are those of the merged weight through B A."""
    model, adapters = tiny(Lora(enable=True, rank=3, alpha=6.0))
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    plain = Transformer(model.args).double()
    read: list[Any] = []  # by such a hook FSDP2 gives the sharded float32 parameters in the place of gathered ones
    model.layers[0].register_state_dict_pre_hook(lambda *inputs: read.append(inputs))
    plain.load_state_dict(dict(adapters.merged()))
    assert read
    logits, expected = model(tokens), plain(tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    logits.square().sum().backward()
    expected.square().sum().backward()
    gradients = dict(plain.named_parameters())
    for name, module in adapters.modules.items():
        whole, a, b = gradients[f"{name}.weight"].grad, module.lora_A.weight, module.lora_B.weight
        torch.testing.assert_close(a.grad, 2.0 * b.T @ whole, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(b.grad, 2.0 * whole @ a.T, rtol=1e-8, atol=1e-10)
        assert module.weight.grad is None
    with adapters.off():
        assert not torch.equal(model(tokens), logits)
    assert torch.equal(model(tokens), logits)
    assert set(model.state_dict()) == {f"{n}.lora_{p}.weight" for n in adapters.modules for p in "AB"}


def test_dropout_is_a_function_of_the_step_and_the_tokens() -> None:
    model, adapters = tiny(Lora(enable=True, rank=3, dropout=0.25))
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    model.noise = 5, 7  # type: ignore[assignment]
    out = model.train()(tokens)
    assert torch.equal(model(tokens), out), "no generator draws"
    torch.testing.assert_close(model(tokens[1:]), out[1:])  # whatever is beside it in the batch
    module = adapters.modules["layers.0.mlp.up_proj"]
    kept = module.drop(torch.ones(2, 9, 4000, dtype=torch.float64))
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    model.noise = 5, 8  # type: ignore[assignment]
    assert not torch.equal(model(tokens), out)
    assert torch.equal(model.eval()(tokens), model(tokens))


LORA = {"enable": True, "rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: random weights, a vocabulary that is larger than its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    write_model(folder, qwen=True, tied=True)
    return folder


def write(folder: Path, base: Path, trainer: str, lora: dict[str, Any], **tables: dict[str, Any]) -> Path:
    """`folder/run.toml`: four steps of a trainer on that base, two of them saved."""
    merged: dict[str, dict[str, Any]] = {
        "job": {"dump_folder": str(folder / "run"), "trainer": trainer},
        "model": {"from_hf": str(base)},
        "tokenizer": {"name": str(base)},
        "training": {"steps": 4, "seq_len": 128, "local_batch_size": 2, "mixed_precision_param": "float32"},
        "lr_scheduler": {"warmup_steps": 1},
        "optimizer": {"lr": 1e-2},
        "metrics": {"log_freq": 1, "enable_tensorboard": False},
        "checkpoint": {"interval": 2, "keep_latest_k": 0, "initial_load_path": str(base)},
        "lora": LORA | lora,
    }
    if trainer == "sft":
        merged["training"] |= {"global_batch_size": 4}
        merged["data"] = {"sources": [{"name": "arithmetic", "subset": "level-1"}]}
    for name, table in tables.items():
        merged[name] = {**merged.get(name, {}), **table}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.toml").write_text(tomli_w.dumps(merged))
    return folder / "run.toml"


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of fine-tuning with dropout and averaged weights."""
    folder = tmp_path_factory.mktemp("sft")
    assert train_here(write(folder, base, "sft", {"dropout": 0.1}, training={"ema_decay": 0.9})) == 0
    return folder


def last_step(folder: Path) -> Path:
    return folder / "run" / "checkpoint" / "step-4"


def cut(folder: Path, target: Path) -> Path:
    """A copy of a run after step 2."""
    shutil.copytree(folder / "run", target / "run", ignore=shutil.ignore_patterns("step-4"))
    (target / "run.toml").write_text((folder / "run.toml").read_text().replace(str(folder), str(target)))
    return target / "run.toml"


def test_a_checkpoint_holds_adapters_alone_and_resumes_bitwise(base: Path, tuned: Path, tmp_path: Path) -> None:
    tensors = read_tensors(last_step(tuned))
    assert {name.split(".lora_")[1][:1] for name in tensors} == {"A", "B"}
    assert {name.split(".")[0] for name in tensors} == {"model", "optimizer", "ema"}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    size = sum(file.stat().st_size for file in (last_step(tuned) / "tensors").iterdir())
    numbers = sum(t.numel() for name, t in tensors.items() if name.startswith("model."))
    assert size < 4 * 4 * numbers + 3000 * len(tensors), "A, B, two moments and an average"
    saved = read_json(last_step(tuned), "train")["adapters"]
    assert saved["base"]["path"] == str(base.resolve()) and set(saved["base"]["fingerprint"]) == {"bfloat16", "float32"}
    assert train_here(cut(tuned, tmp_path)) == 0
    assert_same_step(last_step(tuned), last_step(tmp_path))


def test_other_ranks_go_on(tuned: Path, tmp_path: Path) -> None:
    done = train(cut(tuned, tmp_path), ranks=2)
    assert done.code == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(tuned / "run"), rel=1e-4)
    one, two = (read_tensors(last_step(folder)) for folder in (tuned, tmp_path))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_the_base_is_found_again_or_missed(
    base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its recorded place comes first, then the one of the config; a changed weight is noticed, and so is its lack."""
    config = cut(tuned, tmp_path)
    train_json = tmp_path / "run" / "checkpoint" / "step-2" / "train.json"
    assert train_json.read_text().count(str(base)) == 1
    changed = tmp_path / "changed"
    shutil.copytree(base, changed)
    weights = load_file(changed / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    away = base.with_name("away")
    base.rename(away)
    try:
        for place, said in ((tmp_path / "none", "no such folder"), (changed, "its weights are others now")):
            flags = [f"--{key}={place}" for key in ("checkpoint.initial_load_path",)]
            assert train_here(config, f"--model.from_hf={away}", f"--tokenizer.name={away}", *flags) == 2
            error = capsys.readouterr().err
            assert "holds adapters alone" in error and said in error and "Traceback" not in error
        moved = [f"--{key}={away}" for key in ("checkpoint.initial_load_path", "model.from_hf", "tokenizer.name")]
        assert train_here(config, *moved) == 0
    finally:
        away.rename(base)
    assert_same_tensors(last_step(tuned), last_step(tmp_path))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--lora.rank=8", "lora.rank is 4 there and 8 here"),
        ("--lora.target_modules=q_proj", "lora.target_modules is"),
        ("--lora.enable=false", "lora.enable = false here"),
        ("--optimizer.name=Muon", "optimizer.name is"),
    ],
)
def test_another_run_does_not_go_on(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, said: str
) -> None:
    assert train_here(cut(tuned, tmp_path), flag) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize("optimizer", ["Muon", "AdamW8bit"])
def test_optimizers_take_the_adapters_alone(base: Path, tmp_path: Path, optimizer: str) -> None:
    config = write(tmp_path, base, "sft", {}, optimizer={"name": optimizer, "lr": 1e-3})
    assert train_here(config, "--training.steps=2", "--compile.backend=aot_eager") == 0
    names = read_tensors(tmp_path / "run" / "checkpoint" / "step-2")
    assert all(".lora_" in name for name in names)


def assert_same_tensors(one: Path, other: Path) -> None:
    a, b = read_tensors(one), read_tensors(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits_of(path: Path, **options: Any) -> torch.Tensor:
    model = open_model_source(str(path), **options).load("cpu", torch.float32)
    return model(TOKENS)[..., :259].detach()


TOKENS = torch.arange(40, 60)[None]


def test_exports_are_the_same_model(
    base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tuned / "run")
    assert export_here([run, "--output", str(tmp_path / "merged"), "--merge"]) == 0
    killed = tmp_path / "peft.tmp-0123abcd"
    killed.mkdir()
    assert export_here([run, "--output", str(tmp_path / "peft")]) == 0
    assert not killed.exists()
    assert export_here([run, "--output", str(tmp_path / "ema"), "--weights=ema"]) == 0
    expected, averaged = logits_of(tuned / "run"), logits_of(tuned / "run", weights="ema")
    assert not torch.allclose(expected, averaged, atol=1e-4)
    torch.testing.assert_close(logits_of(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(tmp_path / "peft"), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(tmp_path / "ema"), averaged, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(LINEARS) and (config["r"], config["lora_alpha"]) == (4, 8.0)
    peft = tmp_path / "peft"
    assert open_model_source(str(peft)).knows_chat == open_model_source(run).knows_chat
    (peft / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert open_model_source(str(peft)).chat_template == "{{ messages[0].content }}"
    rules = read_json(peft, "tokenizer")
    vocab = rules["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (peft / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(ConfigError, match="gives other ids than its base's, as to"):
        open_model_source(str(peft))
    for arguments, said in (
        ([str(tmp_path / "merged"), "--merge"], "holds no adapters"),
        ([str(peft), "--tokenizer", str(base)], "is a PEFT folder already"),
    ):
        assert export_here([*arguments, "--output", str(tmp_path / "no")]) == 2
        assert said in capsys.readouterr().err


def test_adapters_on_an_average_and_on_adapters(base: Path, tuned: Path, tmp_path: Path) -> None:
    """A folder of PEFT knows which weights it stands on; what stands on adapters is known by no product."""
    config = write(tmp_path, base, "sft", {}, training={"steps": 1}, optimizer={"lr": 1e-9})
    flags = f"--checkpoint.initial_load_path={tuned / 'run'}", "--checkpoint.initial_load_weights=ema"
    assert train_here(config, *flags) == 0
    run, averaged = tmp_path / "run", logits_of(tuned / "run", weights="ema")
    known = read_json(run / "checkpoint" / "step-1", "train")["adapters"]["base"]["fingerprint"]
    source = open_model_source(str(tuned / "run"), weights="ema")
    assert fingerprint_of(source.tensors, source.tokenizer.vocab_size) == known
    assert export_here([str(run), "--output", str(tmp_path / "peft")]) == 0
    assert export_here([str(tuned / "run"), "--weights=ema", "--merge", "--output", str(tmp_path / "ema")]) == 0
    torch.testing.assert_close(logits_of(run), averaged, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(tmp_path / "peft"), averaged, rtol=1e-5, atol=1e-5)
    file = tmp_path / "peft" / "adapter_config.json"
    file.write_text(file.read_text().replace(str(last_step(tuned)), str(base)))
    with pytest.raises(ConfigError, match="holds other weights than the adapters were trained on"):
        open_model_source(str(tmp_path / "peft"))


def test_peft_reads_and_writes_the_same_model(base: Path, tuned: Path, tmp_path: Path) -> None:
    """Its own folders too: a pattern of targets, ranks and scales of layers by patterns, and rsLoRA."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    assert export_here([str(tuned / "run"), "--output", str(tmp_path / "ours")]) == 0
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours")
    torch.testing.assert_close(theirs(TOKENS).logits[..., :259], logits_of(tuned / "run"), rtol=1e-4, atol=1e-4)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    patterns = {"rank_pattern": {"layers.1.mlp.up_proj": 7}, "alpha_pattern": {"up_proj": 3}}
    for name, own in {
        "regex": {"target_modules": r".*\.layers\.1\..*(q_proj|up_proj)"},
        "patterns": {"target_modules": ["up_proj", "o_proj"], **patterns},
        "rs": {"target_modules": "all-linear", "use_rslora": True},
    }.items():
        model = AutoModelForCausalLM.from_pretrained(base)
        model.name_or_path = model.config._name_or_path = str(base)
        model = peft.get_peft_model(model, peft.LoraConfig(**options, **own))
        model.save_pretrained(tmp_path / name)
        torch.testing.assert_close(model(TOKENS).logits[..., :259], logits_of(tmp_path / name), rtol=1e-4, atol=1e-4)


def test_reinforcement_learning(base: Path, tuned: Path, tmp_path: Path) -> None:
    """The reference is the base, samples are of the merged weights, and a run goes on to the bit."""
    tables: dict[str, Any] = {
        "experimental": {"custom_import": "rl_plugin"},
        "rollout": {"num_samples": 4, "max_new_tokens": 8, "max_rows": 16},
        "grpo": {
            "prompts_per_step": 2,
            "tasks": [{"name": "coin"}],
            "kl_coef": 0.01,
            "overlong": "penalty",
            "overlong_buffer": 1,
            "overlong_penalty": 0.0,
            "probe": "off",
        },
        "validation": {"enable": False},
    }
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert train_here(write(whole, base, "grpo", {}, **tables)) == 0
    rows = read_rows(whole / "run")
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-9) and rows[-1]["kl"] > 1e-6
    assert max(row["logprob_diff_max"] for row in rows) < 1e-4
    assert not [name for name in read_tensors(last_step(whole)) if "reference" in name]
    again.mkdir()
    assert train_here(cut(whole, again)) == 0
    assert_same_step(last_step(whole), last_step(again))
    onward = write(tmp_path / "onward", base, "grpo", {"path": str(tuned / "run")}, **tables)
    assert train_here(onward, "--grpo.kl_coef=0", "--training.steps=1") == 0
    merged = write(tmp_path / "merged", base, "grpo", {"target_modules": "q_proj"}, **tables)
    assert train_here(merged, f"--checkpoint.initial_load_path={tuned / 'run'}", "--training.steps=1") == 0
    row = read_rows(tmp_path / "merged" / "run")[-1]
    assert row["kl"] == pytest.approx(0.0, abs=1e-9) and row["logprob_diff_max"] < 1e-4
    assert torch.isfinite(logits_of(tmp_path / "merged" / "run")).all(), "adapters on a base that has some itself"


@pytest.mark.parametrize(
    ("trainer", "flags", "said"),
    [
        ("sft", ["--lora.target_modules=q_prj"], "did you mean q_proj?"),
        ("sft", ["--lora.target_modules=layers.7.mlp.up_proj"], "is no linear layer"),
        ("sft", ["--lora.target_modules=all-linear,q_proj"], "stands alone"),
        ("sft", ["--lora.target_modules=[]"], "lora.target_modules"),
        ("sft", ["--lora.enable=false", "--lora.path=somewhere"], "no effect without lora.enable = true"),
        ("sft", ["--checkpoint.initial_load_path="], "need trained weights"),
        ("sft", ["--checkpoint.export_hf_interval=2"], "tools.export"),
        ("sft", ["--quantize.linear.float8.recipe_name=tensorwise"], "leave one of the two out"),
        ("grpo", ["--lora.dropout=0.1"], "set it to 0"),
        ("grpo", ["--grpo.kl_coef=0.1", "--grpo.reference_reset=interval"], "the frozen model"),
        ("grpo", ["--grpo.kl_coef=0.1", "--lora.path=somewhere"], "merge them"),
        ("pretrain", [], "it belongs to job.trainer"),
    ],
)
def test_what_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: str, flags: list[str], said: str
) -> None:
    tables = {"grpo": {"grpo": {"tasks": [{"name": "arithmetic"}]}}}.get(trainer, {})
    assert train_here(write(tmp_path, base, trainer, {}, **tables), *flags) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_settings_of_adapters_that_are_off_are_warned_of(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [f"lora.{key} has no effect: it needs lora.enable = true" for key in ("rank", "alpha")]
    assert train_here(write(tmp_path, base, "sft", {"enable": False}, training={"steps": 1})) == 0
    error = capsys.readouterr().err
    assert [line[line.index("lora.") :] for line in error.splitlines() if "has no effect" in line] == said
    flags = "--job.trainer=grpo", "--grpo.tasks", '[{name = "arithmetic"}]', "--lora.rank=4", "--lora.alpha=8"
    config: Any = load_config([*flags])
    assert set(said) <= set(config.settings_without_effect())


def test_what_a_folder_of_peft_may_not_hold(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    assert export_here([str(tuned / "run"), "--output", str(folder)]) == 0
    file = folder / "adapter_config.json"
    written = json.loads(file.read_text())
    for change, said in (
        ({"use_dora": True}, "use_dora = true: not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"a_key_of_2030": 1}, "a_key_of_2030"),
        ({"peft_type": "IA3"}, "supported is LORA"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern"),
        ({"base_model_name_or_path": "nobody/nothing"}, "no such folder"),
    ):
        file.write_text(json.dumps(written | change))
        with pytest.raises(ConfigError, match=said):
            open_model_source(str(folder))
    file.write_text(json.dumps(written))
    tensors = load_file(folder / "adapter_model.safetensors")
    shapes = {name: (0, t.shape[1]) if ".lora_A." in name else (t.shape[0], 0) for name, t in tensors.items()}
    save_file({n: torch.zeros(shape) for n, shape in shapes.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="one rank above 0"):
        open_model_source(str(folder))


def test_adapters_go_on_upon_the_weights_that_they_were_trained_on(
    base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other, peft = str(tuned / "run"), tmp_path / "other", tmp_path / "peft"
    shutil.copytree(base, other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert export_here([run, "--output", str(peft)]) == 0
    config = write(tmp_path, base, "sft", {"path": run}, training={"steps": 1})
    for path, initial in ((run, other), (run, run), (peft, other)):
        assert train_here(config, f"--lora.path={path}", f"--checkpoint.initial_load_path={initial}") == 2
        error = capsys.readouterr().err
        assert f"set it to {base.resolve()}" in error and "Traceback" not in error
    (peft / "titan_pt.json").unlink()  # as of a stranger
    flags = f"--lora.path={peft}", f"--checkpoint.initial_load_path={other}"
    assert train_here(config, *flags) == 0
    assert f"its adapters are of '{base.resolve()}'" in capsys.readouterr().err
