"""The samples of a training in their order: from any sample on, the same in every process, each once per epoch.

Epochs follow each other without a seam: a batch may have the last samples of one and the first of the next, so none is
left out and every batch has the size that the plan was made for.

Inputs and targets are read by two processes.  Data that are not the same in both would train nonsense without a word,
so whoever makes whole items also gives a digest of their targets, and the processes compare.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import default_collate

from autopart.errors import UsageError
from autopart.training.columns import Layout, as_tensor

__all__ = ["ArrayRows", "DatasetRows", "Reader", "Rows", "Samples", "in_rows", "in_stream"]

Columns = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a process reads of a batch."""

    columns: Columns
    """those that it wants"""
    digest: int = 0
    """of the batch's targets, below 2^32; 0 where every process reads from the same arrays"""


Reader = Callable[[int, int], Iterator[Rows]]
"""called with the first sample and the samples of a batch; gives batches without end"""


class Samples(Protocol):
    """Samples that can be had in any order."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def take(self, indices: torch.Tensor) -> Rows:
        """The wanted columns of these samples."""
        ...


class ArrayRows:
    """Arrays or tensors whose first dimension is the samples; only the columns that are wanted are read.

    Raises:
        UsageError: they are not equally long, or empty.
    """

    def __init__(self, item: Any, layout: Layout, wanted: Callable[[str], bool]) -> None:
        columns = layout.named(item)
        lengths = {name: len(value) for name, value in columns.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            counts = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise UsageError(f"the data's columns must have equally many samples, at least one, not {counts}")
        self._length = min(lengths.values())
        self._columns = {name: value for name, value in columns.items() if wanted(name)}

    def __len__(self) -> int:
        return self._length

    def take(self, indices: torch.Tensor) -> Rows:
        """The wanted columns of these samples."""
        return Rows(columns={
            name: value[indices] if isinstance(value, torch.Tensor) else as_tensor(value[indices.numpy()], name)
            for name, value in self._columns.items()
        })  # fmt: skip


class DatasetRows:
    """A dataset with ``__len__`` and ``__getitem__``, one sample each, put together as a DataLoader does.

    Samples that draw random numbers from torch draw the same ones in every process.
    """

    def __init__(self, dataset: Any, layout: Layout, wanted: Callable[[str], bool], seed: int) -> None:
        self._dataset, self._layout, self._wanted, self._seed = dataset, layout, wanted, seed
        if not len(dataset):
            raise UsageError("the dataset is empty; give at least one sample")

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, indices: torch.Tensor) -> Rows:
        """The wanted columns of these samples."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + int(indices[0]))
            item = default_collate([self._dataset[index] for index in indices.tolist()])
        columns = {name: as_tensor(value, name) for name, value in self._layout.named(item).items()}
        return _rows(columns, self._layout, self._wanted)


def in_rows(rows: Samples, *, shuffle: bool, seed: int) -> Reader:
    """Reads rows epoch after epoch, each in an order of its own that follows from the seed and its number."""
    length = len(rows)

    def order(epoch: int) -> torch.Tensor:
        if not shuffle:
            return torch.arange(length)
        return torch.randperm(length, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))

    def read(start: int, size: int) -> Iterator[Rows]:
        epoch, place = divmod(start, length)
        left = order(epoch)[place:]
        while True:
            while len(left) < size:
                epoch += 1
                left = torch.cat([left, order(epoch)])
            yield rows.take(left[:size])
            left = left[size:]

    return read


def in_stream(
    opened: Callable[[], Iterable[Any]], layout: Layout, wanted: Callable[[str], bool], *, seed: int
) -> Reader:
    """Reads an iterable of batches of any size, opened anew for every epoch, cut into batches of the plan's size."""

    def pieces() -> Iterator[Columns]:
        while True:
            num_items = 0
            for item in _apart(opened(), seed):
                num_items += 1
                yield _piece(layout.named(item))
            if not num_items:
                raise UsageError(
                    "the data have ended and give nothing when they are iterated again; give a list, a dataset, a "
                    "DataLoader or a function that makes a new iterator, or fewer --steps"
                )

    def read(start: int, size: int) -> Iterator[Rows]:
        held: list[Columns] = []
        skip = start
        for piece in pieces():
            length = _length(piece)
            if skip >= length:
                skip -= length
                continue
            held.append({name: value[skip:] for name, value in piece.items()})
            skip = 0
            while sum(map(_length, held)) >= size:
                whole = _joined(held)
                yield _rows({name: value[:size] for name, value in whole.items()}, layout, wanted)
                held = [{name: value[size:] for name, value in whole.items()}] if _length(whole) > size else []

    return read


def _apart(items: Iterable[Any], seed: int) -> Iterator[Any]:
    """The items; random numbers that they draw from torch are a row of their own, the same in every process."""
    state = torch.Generator().manual_seed(seed).get_state()
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        iterator = iter(items)
        state = torch.get_rng_state()
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            try:
                item = next(iterator)
            except StopIteration:
                return
            state = torch.get_rng_state()
        yield item


def _piece(named: dict[str, Any]) -> Columns:
    piece = {name: as_tensor(value, name) for name, value in named.items()}
    lengths = {len(value) if value.dim() else 0 for value in piece.values()}
    if len(lengths) != 1 or not min(lengths):
        raise UsageError("an item of the data must be a batch, its tensors equally long along their first dimension")
    return piece


def _rows(columns: Columns, layout: Layout, wanted: Callable[[str], bool]) -> Rows:
    """The wanted of these columns, with the digest of all targets."""
    digest = 0
    for name, value in columns.items():
        if layout.is_target(name):
            digest = zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data, digest)
    return Rows(columns={name: value for name, value in columns.items() if wanted(name)}, digest=digest)


def _joined(held: Sequence[Columns]) -> Columns:
    return {name: torch.cat([each[name] for each in held]) for name in held[0]} if len(held) > 1 else held[0]


def _length(piece: Columns) -> int:
    return len(next(iter(piece.values())))
