"""Reads a step. No arbitrary pickles: its tensors' index can create only the classes of one."""

import functools
import io
import pickle
from enum import EnumMeta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments, one_line
from titan_pt.components.checkpoint.manifest import stays_inside
from titan_pt.config.errors import ConfigError
from titan_pt.distributed.world import World
from titan_pt.run.exit_codes import CannotStart
from titan_pt.run.files import parse_json

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path"},
    "collections": {"OrderedDict"},
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "pathlib" if module == "pathlib._local" else module  # Python 3.13 moved it
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):  # so Python 3.11.0 to 3.11.3 write a member of an enumeration
            return _member
        raise pickle.UnpicklingError(f".metadata asks for {module}.{name}, which no tensor index needs; not loaded")


def _member(kind: Any, name: Any) -> Any:
    if isinstance(kind, EnumMeta) and name in kind.__members__:
        return kind.__members__[name]
    raise pickle.UnpicklingError(f".metadata asks for builtins.getattr of {kind!r}, {name!r}; not loaded")


class SafeReader(FileSystemReader):
    """Reads `.metadata` once, through a restricted unpickler; the tensors are read with weights_only by DCP itself."""

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        return self._index

    @functools.cached_property
    def _index(self) -> Metadata:
        with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as stream:
            metadata = _RestrictedUnpickler(io.BytesIO(stream.read())).load()
        for name in {info.relative_path for info in (metadata.storage_data or {}).values()}:
            if not stays_inside(Path(self.path), name):
                raise pickle.UnpicklingError(f".metadata names {name!r}, which is outside of its folder; not loaded")
        if getattr(metadata, "storage_meta", None) is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class TensorOnlyPlanner(DefaultLoadPlanner):
    """Refuses values that are not tensors: DCP would unpickle them without limits."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is not a tensor; not loaded")


def load_tensors(step_folder: Path, tensors: dict[str, torch.Tensor], world: World) -> None:
    """Fill the given tensors in place from a step, whatever number of ranks wrote it.

    Raises:
        ConfigError: the folder lacks one of the tensors or has it in another shape.
        CannotStart: the disk failed just now; the files were whole when the step was chosen.
    """
    reader = SafeReader(step_folder / "tensors")
    options = {"storage_reader": reader, "planner": TensorOnlyPlanner(), "process_group": world.background}
    # A rank that cannot read the index says so before the others wait for it in `load`.
    for action in (reader.read_metadata, functools.partial(dcp.load, tensors, **options)):
        problem: str | None = None
        try:
            action()
        except (Exception, CheckpointException) as error:
            problem = one_line(error)
        problem = next((text for text in world.gather(problem) if text), None)
        if problem is not None and problem.startswith(f"{OSError.__name__}: "):
            raise CannotStart(f"{step_folder}: its tensors cannot be read: {problem}; run the same command again")
        if problem is not None:
            raise ConfigError(f"{step_folder}: its tensors do not fit this run: {problem}")


def load_documents(step_folder: Path) -> CheckpointDocuments:
    """Read everything of a step that is not a tensor."""
    config = step_folder / "config.toml"
    return CheckpointDocuments(
        train=parse_json((step_folder / "train.json").read_text(encoding="utf-8")),
        data=parse_json((step_folder / "data.json").read_text(encoding="utf-8")),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )
