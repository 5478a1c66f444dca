"""What `python -m titan_pt.config.manager --explain` tells beside the values: the groups of the optimizer."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from titan_pt.components.optimizer import describe_groups
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.init import parameter_name
from titan_pt.planner.sized_tokenizer import SizedTokenizer, tokenizer_size
from titan_pt.protocols.trainer_spec import get_trainer_spec


def explain_optimizer(config: JobConfig) -> list[str]:
    """Lines of comments: each parameter group with rate, decay and parameters, from tensors without numbers."""
    spec = get_trainer_spec(config.job.trainer)
    try:
        try:
            tokenizer: Any = SizedTokenizer(tokenizer_size(config))
        except ConfigError:  # to be counted it has to be opened
            tokenizer = spec.build_tokenizer(config)
        model = spec.build_model(config, tokenizer)
        with FakeTensorMode(allow_non_fake_inputs=True):
            optimizer = spec.build_optimizers(model.to_empty(device="cpu"), config)
    except Exception as error:  # of a plugin's own code too: the values were told
        return [f"# optimizer: its groups cannot be told here: {type(error).__name__}: {' '.join(str(error).split())}"]
    lines = []
    for line, group in zip(describe_groups(optimizer), optimizer.param_groups, strict=True):
        lines += [f"# optimizer {type(optimizer).__name__}, {line}", *_members(model, group["params"])]
    return lines


def _members(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[str]:
    """A line for each kind of parameter in a group: those whose names differ by a number alone."""
    ids = {id(parameter) for parameter in parameters}
    names = (parameter_name(name) for name, parameter in model.named_parameters() if id(parameter) in ids)
    for name, number in Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names).items():
        yield f"#     {name}" + (f", {number} of them" if number > 1 else "")
