"""The import paths that plugins are written against: those of README and of earlier releases."""

import importlib

import pytest

PATHS = {
    "titan_pt.components.checkpoint": [
        "CheckpointError",
        "Checkpointer",
        "Documents",
        "load_documents",
        "load_tensors",
    ],
    "titan_pt.config": ["ConfigError", "JobConfig", "Section", "load_config"],
    "titan_pt.config.job_config": ["JobConfig", "Section"],
    "titan_pt.config.grpo": ["Grpo", "GrpoTask", "Rollout"],
    "titan_pt.config.manager": ["load_config"],
    "titan_pt.data.formatters": ["register_formatter", "register_records"],
    "titan_pt.data.sources": ["register_source"],
    "titan_pt.models.transformer": ["FLAVORS", "Transformer", "TransformerArgs"],
    "titan_pt.protocols.model_spec": ["ModelSpec", "register_model_spec"],
    "titan_pt.protocols.step": ["StepMetrics", "StepParts", "TrainState"],
    "titan_pt.protocols.trainer_spec": ["TrainerSpec", "get_trainer_spec", "register_trainer_spec"],
    "titan_pt.tasks.rewards": ["register_reward"],
    "titan_pt.tasks.task": ["Problem", "Task", "register_task"],
    "titan_pt.trainers.grpo.advantages": ["group_advantages"],
    "titan_pt.trainers.grpo.engine": ["register_engine"],
    "titan_pt.trainers.grpo.grading": ["grade_gsm8k", "grade_medqa"],
    "titan_pt.trainers.grpo.losses": ["get_policy_loss"],
    "titan_pt.trainers.grpo.native": ["build_native_engine"],
    "titan_pt.trainers.grpo.tasks.rewards": ["Sample", "register_reward"],
    "titan_pt.trainers.grpo.tasks.task": ["Problem", "Task", "register_task"],
    "titan_pt.trainers.pretrain": ["SPEC", "build_step"],
    "titan_pt.trainers.sft": ["SPEC"],
}


@pytest.mark.parametrize("path", PATHS)
def test_documented_names_import(path: str) -> None:
    module = importlib.import_module(path)
    missing = [name for name in PATHS[path] if not hasattr(module, name)]
    assert not missing


def test_earlier_paths_hold_the_same_objects() -> None:
    """A class imported twice must be one class, or isinstance of a plugin's objects fails."""
    for earlier, path, name in [
        ("titan_pt.trainers.grpo.tasks.task", "titan_pt.tasks.task", "Task"),
        ("titan_pt.config.job_config", "titan_pt.config", "Section"),
        ("titan_pt.protocols.step", "titan_pt.protocols.context", "StepMetrics"),
    ]:
        assert getattr(importlib.import_module(earlier), name) is getattr(importlib.import_module(path), name)
