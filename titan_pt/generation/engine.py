"""The interface of rollout engines, and their registry."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.schema.grpo import RolloutConfig
from titan_pt.distributed.init import parameter_name, whole
from titan_pt.distributed.world import World
from titan_pt.generation.sampling import Sampling
from titan_pt.protocols.registry import Registry
from titan_pt.run.exit_codes import GaveUp

FinishReason = Literal["stop", "length"]


class NonFiniteLogits(GaveUp):
    """The model gives no distribution to draw from; the text says where. In training it ends the run with 70."""

    def __str__(self) -> str:
        return (
            f"logits are not finite: {self.args[0]}; the weights hold NaN or infinity, or overflow in this type: look "
            "at the training that made them, or compute in another type"
        )


class GenerationStopped(Exception):
    """A signal asked this process to stop in the middle of a generation."""


def check_prompts(
    prompts: Sequence[Sequence[int]], sampling: Sampling, longest: int, key: str = "model.max_seq_len"
) -> None:
    """Check that each prompt has a token, and room for its completion.

    Args:
        longest: the most tokens that the engine reads, the value of `key`.

    Raises:
        ValueError: one has not.
    """
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} is empty; it needs at least one token, such as the end-of-document")
        if len(prompt) + sampling.max_new_tokens > longest:
            raise ValueError(
                f"prompt {number}: {len(prompt)} tokens and rollout.max_new_tokens = {sampling.max_new_tokens} "
                f"are more than {key} = {longest}"
            )


def whole_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole weight) of a model in training, adapters merged into the weights beside them. A collective."""
    if adapters := getattr(model, "adapters", None):
        yield from adapters.merged()
        return
    for name, parameter in model.named_parameters():
        yield parameter_name(name), whole(parameter)


@dataclass(frozen=True)
class Completion:
    """One completion of one prompt."""

    prompt: int
    """Number of the prompt in the request."""
    token_ids: list[int]
    """Tokens of the completion; the token that ended it is included and trained on."""
    logprobs: list[float]
    """Log-probability of each token under the distribution it was drawn from."""
    finish_reason: FinishReason
    sampled: tuple[bool, ...] = ()
    """Whether the model drew each token, in a conversation whose other tokens a `Partner` wrote; empty: all of them."""


class Partner(Protocol):
    """Answers the turns that a model writes in a conversation. Completions go by their numbers in the request."""

    max_tokens: int
    """Most tokens of a conversation, the answers' included."""

    def hear(self, number: int, tokens: Sequence[int], *, ended: bool) -> None:
        """Take a turn of completion `number`.

        Args:
            ended: whether a token that ends a turn is the last one; else the turn was cut off.
        """
        ...

    def answers(self) -> list[tuple[int, list[int]]]:
        """(number of a completion, tokens that the model reads before its next turn), once there are some.

        An answer leaves room for a token within max_tokens. What is not in time comes with a later call. Empty: no
        conversation goes on.

        Raises:
            GenerationStopped: this process is asked to stop.
        """
        ...


class RolloutEngine(Protocol):
    """Samples completions from the policy."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int, prompt_ids: Sequence[int] | None = None
    ) -> list[Completion]:
        """Sample `n` completions of each prompt, in the order of the prompts.

        Args:
            prompts: token ids; none may be empty.
            prompt_ids: keys of the prompts' noise; None: 0, 1, 2, ...

        Raises:
            GenerationStopped: on this rank alone; the caller tells the others.
            NonFiniteLogits: also on this rank alone.
        """
        ...

    def sync_weights(self, model: nn.Module) -> None:
        """Copy the trained weights. A collective: call it on all ranks."""
        ...


@runtime_checkable
class ConversationEngine(RolloutEngine, Protocol):
    """A rollout engine whose completions can have several turns."""

    def converse(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int,
        prompt_ids: Sequence[int] | None,
        partner: Partner,
    ) -> list[Completion]:
        """Sample `n` conversations with a partner from each prompt; each turn has at most max_new_tokens.

        Token number t of a completion, the partner's counted too, draws from the noise of (key of the row, t).

        Raises:
            GenerationStopped, NonFiniteLogits: as `generate`.
        """
        ...


EngineFactory = Callable[[RolloutConfig, Tokenizer, World, Sequence[int]], RolloutEngine]
"""(config, tokenizer, world, ids of the tokens that end a completion) -> engine, with any weights."""


_ENGINES: Registry[EngineFactory] = Registry(
    "rollout engine {}",
    {
        "native": "titan_pt.generation.native:build_native_engine",
        "vllm": "titan_pt.generation.vllm_engine:build_vllm_engine",
    },
)


def register_engine(name: str, factory: EngineFactory) -> EngineFactory:
    """Make an engine known by `[rollout] engine`. A second registration of a name is an error."""
    return _ENGINES.register(name, factory)


def build_engine(config: RolloutConfig, tokenizer: Tokenizer, world: World, stop_ids: Sequence[int]) -> RolloutEngine:
    """The engine of `[rollout] engine`; `sync_weights` gives it the policy.

    Args:
        stop_ids: tokens that end a completion.

    Raises:
        ConfigError: the name is unknown; lists the known ones. Or the engine cannot run this model or device.
    """
    hint = "; others are registered with register_engine by experimental.custom_import"
    build = _ENGINES.find(config.rollout.engine, "rollout.engine", hint)
    return build(config, tokenizer, world, stop_ids)
