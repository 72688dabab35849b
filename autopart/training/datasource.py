"""What ``--data`` names: ``file.py:function``, ``package.module:function``, or files of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autopart.errors import UsageError
from autopart.training.columns import Layout
from autopart.training.reading import ArrayRows, DatasetRows, Reader, in_rows, in_stream
from autopart.usercode import call, import_file, import_module

__all__ = ["open_data", "reader_of"]


def open_data(text: str, directory: str | Path | None = None) -> Callable[[], Any]:
    """What gives the data that ``text`` names, anew at every call.

    Args:
        text: ``file.py:function``, ``package.module:function``, or a comma list of ``.npy`` files, or one ``.npz`` or
            ``.pt`` file.  Files are read without unpickling anything.
        directory: what relative paths start from; None: the working directory.

    Raises:
        UsageError: there are no such data.
    """
    where, _, name = text.rpartition(":")
    if where and name.isidentifier():
        return _function(where, name, directory)
    paths = [Path(directory or "") / each for each in text.split(",")]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UsageError(
            f"the data {missing[0]} do not exist; give file.py:function, package.module:function, or .npy, .npz or .pt"
        )
    if len(paths) == 1 and paths[0].suffix in _WHOLE:
        return lambda: _WHOLE[paths[0].suffix](paths[0])
    if any(path.suffix != ".npy" for path in paths):
        raise UsageError(f"{text} cannot be read as data; give .npy files with commas between, one .npz or one .pt")
    return lambda: tuple(_read(np.load, path, mmap_mode="r", allow_pickle=False) for path in paths)


def reader_of(
    opened: Callable[[], Any], layout: Layout, wanted: Callable[[str], bool], *, shuffle: bool, seed: int
) -> Reader:
    """How the data are read, by what they are.

    A tensor, an array, or a tuple or dict of them: samples along the first dimension.  What has ``__len__`` and
    ``__getitem__``: a dataset of samples.  Anything else that can be iterated (a DataLoader, a generator): batches.

    Args:
        opened: gives the data.
        layout: which columns the model and the loss take.
        wanted: whether this process reads a column.
        shuffle: arrays and datasets; an iterable comes in its own order.
        seed: of the order, and of what random numbers the data draw from torch.

    Raises:
        UsageError: they are none of these, or do not fit the model.
    """
    found = opened()
    if _is_array(found) or _has_arrays(found):
        return in_rows(ArrayRows(found, layout, wanted), shuffle=shuffle, seed=seed)
    if hasattr(found, "__len__") and hasattr(found, "__getitem__") and not isinstance(found, Mapping):
        return in_rows(DatasetRows(found, layout, wanted, seed), shuffle=shuffle, seed=seed)
    if not isinstance(found, Iterable) or isinstance(found, Mapping):
        raise UsageError(
            f"the data are a {type(found).__name__}; give tensors or arrays, a dataset, or an iterable of batches"
        )
    first = [found]  # opened once already to see what it is
    return in_stream(lambda: first.pop() if first else opened(), layout, wanted, seed=seed)


def _function(where: str, name: str, directory: str | Path | None) -> Callable[[], Any]:
    module = import_file(Path(directory or "") / where) if where.endswith(".py") else import_module(where)
    function = getattr(module, name, None)
    if function is None:
        raise UsageError(f"{where} has no {name}, which --data names; write a function that gives the data")
    if not callable(function):
        return lambda: function
    return lambda: call(function, what=f"{where}: {name}()")


def _read(load: Callable[..., Any], path: Path, **words: Any) -> Any:
    try:
        return load(path, **words)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{path} cannot be read as data: {reason}") from error


def _npz(path: Path) -> dict[str, Any]:
    archive = _read(np.load, path, allow_pickle=False)
    return {name: _read(lambda _, name=name: archive[name], path) for name in archive.files}


def _pt(path: Path) -> Any:
    return _read(torch.load, path, weights_only=True, mmap=True, map_location="cpu")


_WHOLE: dict[str, Callable[[Path], Any]] = {".npz": _npz, ".pt": _pt}


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _has_arrays(value: Any) -> bool:
    values = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, tuple) else []
    return bool(values) and all(map(_is_array, values))
