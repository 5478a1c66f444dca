"""Distillation against whole distributions, one sample at a time; whose teacher may teach whom."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_helpers import write_model
from test_grpo_policy import ARGS, TEMPERATURE, make_model, make_samples, update

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import load_config
from titan_pt.config.schema.grpo import Teacher
from titan_pt.hf.model_source import open_model_source
from titan_pt.models.transformer import Transformer
from titan_pt.trainers.grpo import distill
from titan_pt.trainers.grpo.distill import TeacherModel, open_teacher
from titan_pt.trainers.grpo.packing import TrainSample
from titan_pt.trainers.grpo.step import GrpoStep


def make_teacher(**options: Any) -> TeacherModel:
    """Of another width and depth, with fewer rows that only pad its vocabulary."""
    sizes = {"hidden_size": 48, "num_layers": 3, "vocab_size": 38, "logit_softcap": 4.0}
    model = Transformer(ARGS.model_copy(update=sizes), document_mask=True)
    model.init_weights(7)
    return TeacherModel(model.requires_grad_(False), Teacher(path="there", **options), "")


def log_softmax(model: Transformer, sample: TrainSample) -> torch.Tensor:
    """log p_CV of each completion token, by a forward of this sample alone."""
    logits = model(torch.tensor([[*sample.prompt_ids, *sample.completion_ids]]))[0, :, :37]
    return torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1].float() / TEMPERATURE, dim=-1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("estimator", ["full", "sampled"])
@pytest.mark.parametrize("chunk", [2**21, 80])
def test_an_update_is_a_step_down_the_reverse_kl(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, estimator: Any, chunk: int
) -> None:
    monkeypatch.setattr(distill, "_CPU_ELEMENTS", chunk)
    args = ARGS.model_copy(update={"logit_softcap": softcap})
    model, expected = (make_model(args=args) for _ in range(2))
    teacher = make_teacher(kl_estimator=estimator, kl_coef=0.5)
    samples = make_samples(model)
    metrics = update(model, samples, teacher=teacher, loss="distill")
    kept = samples[:7]
    tokens = sum(len(sample.completion_ids) for sample in kept)
    loss, found = torch.zeros(()), 0.0
    for sample in kept:
        log_p, log_q = log_softmax(expected, sample), log_softmax(teacher.model, sample)  # type: ignore[arg-type]
        y = torch.tensor(sample.completion_ids)[:, None]
        own, theirs = log_p.gather(-1, y)[:, 0], log_q.gather(-1, y)[:, 0]
        gap = (own - theirs).detach()
        kl = (log_p.exp() * (log_p - log_q)).sum() if estimator == "full" else (gap * own).sum()
        loss = loss + (0.5 * kl - sample.advantage * own.sum()) / tokens
        found += (kl.detach() if estimator == "full" else gap.sum()).item() / tokens
    loss.backward()
    assert metrics.teacher_kl is not None and metrics.teacher_kl.item() == pytest.approx(found, rel=1e-4)
    assert abs(found) > 5e-3
    for (name, moved), start in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved.detach(), start.detach() - start.grad, rtol=1e-4, atol=2e-6, msg=name)


def test_the_sampled_estimate_has_the_gradient_of_the_sum_as_its_mean() -> None:
    """Of one position, over all tokens that may be sampled there."""
    model, teacher = make_model(), make_teacher()
    first = make_samples(model)[0]
    log_p, log_q = (log_softmax(each, first)[0] for each in (model, teacher.model))  # type: ignore[arg-type]
    full = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), model.norm.weight, retain_graph=True)[0]
    each = [
        float(log_p[y].exp()) * float(log_p[y] - log_q[y])
        * torch.autograd.grad(log_p[y], model.norm.weight, retain_graph=True)[0]
        for y in range(37)
    ]  # fmt: skip
    torch.testing.assert_close(sum(each), full, rtol=1e-4, atol=1e-6)


def test_only_a_teacher_of_the_same_tokenizer_teaches(tmp_path: Path) -> None:
    write_model(tmp_path, qwen=True, tied=True)
    assert open_teacher(str(tmp_path), open_model_source(str(tmp_path)).tokenizer).args.num_layers == 2
    with pytest.raises(ConfigError, match="the end of a document: 258 there, 256 here"):
        open_teacher(str(tmp_path), ByteTokenizer())
    shorter = ByteTokenizer()
    shorter.vocab_size, shorter.fingerprint, shorter.special_ids = 257, "shorter", {"<|endoftext|>": 256}
    with pytest.raises(
        ConfigError, match=r"tokens: 259 there, 257 here; .*special token '<\|im_end\|>': 258 there, none"
    ):
        open_teacher(str(tmp_path), shorter)


@pytest.mark.parametrize(
    ("teacher", "state", "said"),
    [
        ("there", {"teacher": "there"}, ""),
        ("", {}, ""),
        ("there", {}, "was trained with no teacher, and goes on with one: grpo.loss = 'distill'"),
        ("", {"teacher": "there"}, "was trained with a teacher, and goes on with none: grpo.loss = 'grpo'"),
    ],
)
def test_a_resume_says_where_a_teacher_comes_or_goes(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, teacher: str, state: dict[str, Any], said: str
) -> None:
    step: Any = SimpleNamespace(
        reference=None,
        _teacher=SimpleNamespace(fingerprint=teacher) if teacher else None,
        _grpo=SimpleNamespace(loss="distill" if teacher else "grpo"),
    )
    GrpoStep.check_state(step, state, tmp_path)
    assert caplog.messages == ([f"{tmp_path}: {said}"] if said else [])


def test_a_teacher_of_its_own_family_has_no_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SimpleNamespace(build=lambda *_: torch.nn.Dropout(0.5), parallelize=lambda model, *_: model)
    monkeypatch.setattr(distill, "_spec", lambda _: spec)
    source: Any = SimpleNamespace(own=SimpleNamespace(args=None))
    config: Any = load_config(["--job.trainer=grpo", "--grpo.tasks", '[{name = "arithmetic"}]'])
    assert not distill._frozen(source, config, None).training  # type: ignore[arg-type]
