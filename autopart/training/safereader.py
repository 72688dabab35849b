"""Reading a checkpoint's index without running what a stranger put in it.

torch.distributed.checkpoint pickles the index (``.metadata``).  A pickle can name any function; the index needs only a
few classes, and no other is looked up here.  Tensors are read by torch with ``weights_only``.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from autopart.errors import FileFormatError

__all__ = ["SafeReader"]

_NAMES = {
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"), ("torch", "Size"), ("pathlib", "PosixPath"), ("collections", "OrderedDict"),
    *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The class, if an index may name it."""
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, for which an index has no use")
        return super().find_class(module, name)


class SafeReader(FileSystemReader):
    """torch's reader of a checkpoint's directory, which refuses an index with anything unusual in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index.

        Raises:
            FileFormatError: there is none, or it names what an index has no use for.
        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _Unpickler(file).load()
        except (OSError, pickle.UnpicklingError, EOFError) as error:
            raise FileFormatError(f"{path} is no index of a checkpoint: {error}") from None
        if not isinstance(metadata, Metadata):
            raise FileFormatError(f"{path} is no index of a checkpoint but a {type(metadata).__name__}")
        return metadata
