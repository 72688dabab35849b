"""Checkpoints by torch.distributed.checkpoint, under the names of the user's own model.

A directory holds ``step-00000040`` and so on.  Each is written aside, as ``.step-00000040.partial``, by all ranks, and
renamed by the first when all of it is on disk: what has its name is whole.  Keys are ``model.NAME`` with the names of
the model's own ``state_dict()`` (a tied weight under each of its names) and ``optimizer.state.NAME.FIELD``; which rank
wrote what is of no matter to who reads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from autopart.errors import FileFormatError, RunError
from autopart.schema import store
from autopart.schema.training import Progress
from autopart.training.safereader import SafeReader
from autopart.units import format_bytes

__all__ = ["Entries", "empty_state", "latest", "load_into", "progress_of", "save"]

_PREFIX, _PROGRESS = "step-", "progress.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """What one rank writes: tensors by the names of the model, and of its optimizer's state."""

    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Mapping[str, torch.Tensor]]
    """fields by the parameter's name"""


class _Writer(FileSystemWriter):
    """torch's writer, which says why: its own error for a full disk is about a position in an archive."""

    def write_data(self, *args: Any, **words: Any) -> Any:
        """Writes; raises the system's error where there is one behind torch's."""
        try:
            return super().write_data(*args, **words)
        except RuntimeError as error:
            behind = error.__context__
            raise (behind if isinstance(behind, OSError) else error) from None


def latest(directory: str | Path) -> Path | None:
    """The checkpoint of the highest step; None if there is none."""
    return max(_whole(Path(directory)), default=None)


def progress_of(checkpoint: Path) -> Progress:
    """Where the training stood.

    Raises:
        FileFormatError: it is no checkpoint of ours.
    """
    return store.load(Progress, checkpoint / _PROGRESS)


def save(directory: Path, entries: Entries, progress: Progress, *, rank: int, num_ranks: int, keep: int) -> Path:
    """Writes a checkpoint and removes all but the latest ``keep``; every rank has to call it.

    Raises:
        RunError: it cannot be written; what there was before is untouched.
    """
    final = directory / f"{_PREFIX}{progress.step:08d}"
    partial = directory / f".{final.name}.partial"
    try:
        if rank == 0:
            for leftover in directory.glob(f".{_PREFIX}*.partial"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)
        _together(num_ranks)
        optimizer = {name: dict(fields) for name, fields in entries.optimizer.items()}
        state = {"model": dict(entries.model), "optimizer": {"state": optimizer}}
        with _one_process_expected():
            save_state(state, storage_writer=_Writer(partial), no_dist=num_ranks == 1)
        if rank == 0:
            store.save(progress, partial / _PROGRESS)
            _publish(partial, final)
            for old in sorted(_whole(directory))[:-keep]:
                shutil.rmtree(old)
        _together(num_ranks)
    except (CheckpointException, OSError, RunError, ValueError) as error:
        raise _unwritten(error, directory, partial, progress.step) from error
    return final


def empty_state(checkpoint: Path, name: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Room for what the optimizer kept of a parameter: on the parameter's device, but its step counts where they were.

    They are where torch's optimizers keep them unless told otherwise: numbers of no dimension on the processor.
    """
    prefix = f"optimizer.state.{name}."
    return {
        key.removeprefix(prefix): torch.empty(
            each.size, dtype=each.properties.dtype, device=device if len(each.size) else torch.device("cpu")
        )
        for key, each in SafeReader(checkpoint).read_metadata().state_dict_metadata.items()
        if key.startswith(prefix) and "." not in key.removeprefix(prefix) and isinstance(each, TensorStorageMetadata)
    }


def load_into(checkpoint: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fills tensors from a checkpoint, by its keys, in place; each process for itself.

    Raises:
        FileFormatError: the checkpoint cannot be read, lacks a key, or has it in another shape.
    """
    metadata = SafeReader(checkpoint).read_metadata().state_dict_metadata
    for key, tensor in tensors.items():
        size = getattr(metadata.get(key), "size", None)
        if size is None or tuple(size) != tuple(tensor.shape):
            found = "is not in it" if size is None else f"has shape {tuple(size)} there, {tuple(tensor.shape)} here"
            raise FileFormatError(f"{checkpoint} is of another model or optimizer: {key} {found}")
    if not tensors:
        return
    try:
        with _one_process_expected():
            load_state(dict(tensors), storage_reader=SafeReader(checkpoint), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, EOFError) as error:
        reason = _first_line(error)
        raise FileFormatError(f"{checkpoint} cannot be read: {reason}; use an earlier checkpoint") from error


@contextlib.contextmanager
def _one_process_expected() -> Iterator[None]:
    """Without torch's warning that there is one process: it was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _whole(directory: Path) -> list[Path]:
    return [path for path in directory.glob(f"{_PREFIX}*") if (path / _PROGRESS).is_file()]


def _together(num_ranks: int) -> None:
    if num_ranks > 1:
        dist.barrier()


def _publish(partial: Path, final: Path) -> None:
    """Renames; one that was written before at this step, by a training that then went on from earlier, gives way."""
    if final.exists():
        shutil.rmtree(final)
    os.rename(partial, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritten(error: BaseException, directory: Path, partial: Path, step: int) -> RunError:
    with contextlib.suppress(OSError):  # the disk has other troubles; the next start clears it away
        shutil.rmtree(partial)
    before = latest(directory)
    still = f"{before.name} is still there to resume from" if before else "there is no earlier one"
    free = format_bytes(shutil.disk_usage(directory).free) if directory.exists() else "nothing"
    return RunError(
        f"the checkpoint of step {step} cannot be written to {directory}: {_first_line(error)} ({free} free); {still}: "
        f"make room, or give another directory"
    )


def _first_line(error: BaseException) -> str:
    """What went wrong, of the first rank that it went wrong on."""
    if isinstance(error, CheckpointException):
        failures = sorted(error.failures.items())
        if failures:
            return _first_line(failures[0][1][0])
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
