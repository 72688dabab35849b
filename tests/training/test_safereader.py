from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from autopart.errors import FileFormatError
from autopart.schema.training import Progress
from autopart.training import checkpoints
from autopart.training.checkpoints import Entries
from autopart.training.safereader import SafeReader


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_an_index_that_would_run_a_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Command(f"touch {tmp_path}/ran")))
    with pytest.raises(FileFormatError, match=r"it names (posix|nt|os).system, for which an index has no use"):
        SafeReader(tmp_path).read_metadata()
    assert not (tmp_path / "ran").exists()


def test_what_is_no_index_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="No such file"):
        SafeReader(tmp_path).read_metadata()
    (tmp_path / ".metadata").write_bytes(pickle.dumps([1]))
    with pytest.raises(FileFormatError, match="a list"):
        SafeReader(tmp_path).read_metadata()
    (tmp_path / ".metadata").write_bytes(b"\x80\x04]")
    with pytest.raises(FileFormatError, match="is no index"):
        SafeReader(tmp_path).read_metadata()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_tensors_of_every_type_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    value = torch.arange(6).reshape(2, 3).to(dtype)
    progress = Progress(step=3, samples=1, fingerprint="", optimizer="sgd", data="")
    entries = Entries(model={"a": value.t()}, optimizer={"a": {"step": torch.tensor(3.0)}})
    saved = checkpoints.save(tmp_path, entries, progress, rank=0, num_ranks=1, keep=1)
    assert checkpoints.latest(tmp_path) == saved and checkpoints.progress_of(saved) == progress
    assert isinstance(SafeReader(saved).read_metadata(), Metadata)
    found = torch.zeros(3, 2, dtype=dtype)
    checkpoints.load_into(saved, {"model.a": found})
    assert torch.equal(found, value.t())
    room = checkpoints.empty_state(saved, "a", torch.device("cpu"))
    checkpoints.load_into(saved, {f"optimizer.state.a.{name}": each for name, each in room.items()})
    assert room == {"step": torch.tensor(3.0)}
    with pytest.raises(FileFormatError, match=r"model.a has shape \(3, 2\) there, \(6,\) here"):
        checkpoints.load_into(saved, {"model.a": torch.zeros(6)})


def test_a_damaged_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    progress = Progress(step=1, samples=1, fingerprint="", optimizer="sgd", data="")
    entries = Entries(model={"a": torch.rand(100)}, optimizer={})
    saved = checkpoints.save(tmp_path, entries, progress, rank=0, num_ranks=1, keep=1)
    (file,) = saved.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileFormatError, match="cannot be read"):
        checkpoints.load_into(saved, {"model.a": torch.zeros(100)})
