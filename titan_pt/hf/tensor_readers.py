"""Readers of a model's weights on disk: one tensor at a time, by the names of the model's parameters."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from titan_pt.components.checkpoint.reader import SafeReader, TensorOnlyPlanner
from titan_pt.config.errors import ConfigError
from titan_pt.protocols.model_spec import HuggingFaceLayout
from titan_pt.run.files import parse_json, read_text

logger = logging.getLogger("titan_pt")

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
# Most bytes of one tensor in memory while two are compared.
_COMPARED_BYTES = 2**24
# What wrappers of a model add to the names of its tensors: at any place, and at the beginning.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIXES = ("module.", "base_model.model.")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a tensor that is not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorReader(Protocol):
    """Interface that reads weights by name."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """All tensors, in the order that is the quickest to read."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, on the CPU."""
        ...

    def place(self, name: str) -> str:
        """The tensor's file and its name there, for messages; works for missing tensors too."""
        ...


class CheckpointTensors:
    """The model's weights in one `step-N`, whatever number of ranks wrote it.

    Args:
        kind: "model" for the trained ones, "ema" for their average.

    Raises:
        ConfigError: the step cannot be read.
    """

    def __init__(self, step_folder: Path, kind: str = "model") -> None:
        self._folder, self._prefix = step_folder / "tensors", f"{kind}."
        try:
            entries = SafeReader(self._folder).read_metadata().state_dict_metadata
        except Exception as error:  # of a damaged pickle, any
            raise ConfigError(f"{self._folder / '.metadata'}: cannot be read: {error}") from None
        self.infos = {
            name.removeprefix(self._prefix): TensorInfo(tuple(entry.size), entry.properties.dtype)
            for name, entry in entries.items()
            if name.startswith(self._prefix) and isinstance(entry, TensorStorageMetadata)
        }

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, put together from its shards."""
        info = self.infos[name]
        tensors = {self._prefix + name: torch.empty(info.shape, dtype=info.dtype)}
        reader = SafeReader(self._folder)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp.load(tensors, storage_reader=reader, planner=TensorOnlyPlanner(), no_dist=True)
        except (Exception, CheckpointException) as error:
            reason = str(error).strip().splitlines()
            raise ConfigError(f"{self.place(name)}: cannot be read: {reason[0] if reason else error!r}") from None
        return tensors[self._prefix + name]

    def place(self, name: str) -> str:
        return f"{self._folder}: {self._prefix}{name}"


class SafetensorsFolder:
    """The weights of a Hugging Face folder.

    Args:
        copies: tensors that are left out where the folder has them, and which ones they are copies of.

    Raises:
        ConfigError: a file is missing or damaged, a tensor is not where the index says, or a copy is none; names file
            and tensor.
    """

    def __init__(self, folder: Path, layout: HuggingFaceLayout[Any], copies: Mapping[str, str] | None = None) -> None:
        self._folder, self._layout = folder, layout
        self._files: dict[str, tuple[Path, str]] = {}
        self._open: tuple[Path, Any] | None = None
        infos: dict[str, TensorInfo] = {}
        renamed: dict[str, str] = {}
        for file, expected in _files(folder).items():
            handle = self._handle(file)
            held = list(handle.keys())
            missing = sorted(expected - set(held))
            if missing:
                raise ConfigError(f"{file}: has no {missing[0]}, which {INDEX} says it has")
            for there in held:
                bare = unwrapped(there)
                renamed |= {there: bare} if bare != there else {}
                name = layout.from_name(bare)
                if name is None:
                    continue
                if name in infos:
                    first, also = self._files[name]
                    raise ConfigError(f"{file}: {there}: is the same tensor as {also} in {first.name}; remove one")
                infos[name], self._files[name] = _info(file, handle, there), (file, there)
        if renamed:
            there, bare = next(iter(renamed.items()))
            logger.warning(
                f"{folder}: {there} is read as {bare}, as are {len(renamed) - 1} more names of a wrapped model"
            )
        for copy, original in (copies or {}).items():
            both = copy in infos and original in infos
            if both and not (infos[copy].shape == infos[original].shape != () and self._are_equal(copy, original)):
                raise ConfigError(
                    f"{self.place(copy)}: is not {layout.to_name(original)}, and config.json has tie_word_embeddings = "
                    "true; set it to false there if the model was trained with both"
                )
            infos.pop(copy, None)
        self.infos = infos

    def _are_equal(self, one: str, other: str) -> bool:
        """Compare two tensors of one shape, all rows of both, so that neither is in memory whole."""
        pairs = zip(self._chunks(one), self._chunks(other), strict=True)
        return all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in pairs)

    def _chunks(self, name: str) -> Iterator[torch.Tensor]:
        file, there = self._files[name]
        count, *rest = self._handle(file).get_slice(there).get_shape()
        rows = max(1, _COMPARED_BYTES // (8 * max(1, torch.Size(rest).numel())))  # 8 bytes: the widest type
        for start in range(0, count, rows):
            yield self._handle(file).get_slice(there)[start : start + rows]

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor as a copy, so that the file's pages can be freed.

        Raises:
            ConfigError: it cannot be read, or a value is NaN or infinite.
        """
        file, there = self._files[name]
        try:
            tensor = self._handle(file).get_tensor(there).clone()
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{self.place(name)}: cannot be read: {error}") from None
        bad = (~tensor.isfinite()).sum().item()
        if bad:
            raise ConfigError(f"{self.place(name)}: {bad:,} of {tensor.numel():,} values are not finite")
        return tensor

    def place(self, name: str) -> str:
        file, there = self._files.get(name, (self._folder, self._layout.to_name(name)))
        return f"{file}: {there}"

    def _handle(self, file: Path) -> Any:
        """Open a file and close the one before: mapped files count as memory."""
        if self._open is None or self._open[0] != file:
            self._open = None
            try:
                self._open = file, safe_open(file, framework="pt")
            except FileNotFoundError:
                raise ConfigError(f"{file}: missing, and {INDEX} names it; download the folder again") from None
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{file}: not a whole safetensors file: {error}; download it again") from None
        return self._open[1]


def unwrapped(name: str) -> str:
    """The name of a tensor without what torch.compile, DDP, FSDP and PEFT put before it."""
    bare = _WRAPPERS.sub("", name)
    while prefix := next((prefix for prefix in _PREFIXES if bare.startswith(prefix)), ""):
        bare = _WRAPPERS.sub("", bare.removeprefix(prefix))
    return bare


def check_fit(
    reader: TensorReader, expected: Mapping[str, tuple[int, ...]], least_rows: Mapping[str, int] | None = None
) -> None:
    """Check that stored weights fit a model.

    Args:
        expected: shape of every tensor of the model.
        least_rows: smallest number of rows of tensors that need not have the model's.

    Raises:
        ConfigError: names every tensor that is missing, too many, or of another shape.
    """
    held, wanted = reader.infos.keys(), expected.keys()
    problems = [f"{reader.place(name)}: missing" for name in sorted(wanted - held)]
    problems += [f"{reader.place(name)}: the model has no such tensor" for name in sorted(held - wanted)]
    for name in sorted(wanted & held):
        shape, least = reader.infos[name].shape, (least_rows or {}).get(name)
        if least is not None and shape and shape[1:] == expected[name][1:]:
            if shape[0] < least:
                problems.append(f"{reader.place(name)}: has {shape[0]} rows for a tokenizer of {least} tokens")
        elif shape != expected[name]:
            problems.append(f"{reader.place(name)}: has shape {list(shape)}, and the model {list(expected[name])}")
    if problems:
        raise ConfigError(*problems)


def _files(folder: Path) -> dict[Path, set[str]]:
    """Find the safetensors files of a folder, each with the tensors that the index expects in it."""
    index, single = folder / INDEX, folder / SINGLE
    if (folder / ADAPTER).is_file():
        raise ConfigError(
            f"{folder / ADAPTER}: the folder holds an adapter, which is not read; merge it and save again"
        )
    if single.is_file() and index.is_file():
        logger.warning(f"{folder}: {SINGLE} is read, as transformers does, and not the shards of {INDEX}")
    if single.is_file():
        return {single: set()}
    if not index.is_file():
        raise ConfigError(f"{folder}: has neither {SINGLE} nor {INDEX}; weights in other files cannot be read")
    try:
        places = dict(parse_json(read_text(index))["weight_map"])
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{index}: cannot be read: {type(error).__name__}: {error}") from None
    files: dict[Path, set[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:  # no path out of the folder
            raise ConfigError(f"{index}: {name}: {file!r} is not the name of a file")
        files.setdefault(folder / file, set()).add(name)
    return files


def _info(file: Path, handle: Any, name: str) -> TensorInfo:
    part = handle.get_slice(name)
    dtype = part.get_dtype()
    if dtype not in _DTYPES:
        raise ConfigError(f"{file}: {name} has type {dtype}; supported are {', '.join(_DTYPES)}")
    return TensorInfo(tuple(part.get_shape()), _DTYPES[dtype])
