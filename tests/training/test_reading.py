from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autopart.errors import UsageError
from autopart.modelsource import Source
from autopart.training.columns import Layout, layout_of
from autopart.training.datasource import open_data, reader_of
from autopart.training.reading import Reader

SIZE = 4


class TwoInputs(nn.Module):
    """Takes two batched arguments, one of them by keyword, and one that is not batched."""

    def forward(self, image: torch.Tensor, scale: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return image * mask * scale


def layout(num_targets: int | None = 1) -> Layout:
    targets = None if num_targets is None else (*(torch.zeros(SIZE, dtype=torch.int64),) * num_targets, 0.5)
    return layout_of(Source(
        model=TwoInputs(), args=(torch.zeros(SIZE, 2), torch.full((3,), 7.0)), kwargs={"mask": torch.zeros(SIZE, 1)},
        targets=targets, name="", text="",
    ))  # fmt: skip


def columns(length: int) -> dict[str, torch.Tensor]:
    numbers = torch.arange(length)
    return {"image": numbers[:, None].expand(-1, 2).float(), "mask": numbers[:, None].double(), "label": numbers}


def reader(data: Any, *, shuffle: bool = False, wants: str = "both", seed: int = 0) -> Reader:
    def wanted(name: str) -> bool:
        return wants == "both" or name.startswith("target") == (wants == "targets")

    opened = data if callable(data) else lambda: data
    return reader_of(opened, layout(), wanted, shuffle=shuffle, seed=seed)


def labels(read: Reader, start: int, num_batches: int, size: int = SIZE) -> list[int]:
    batches = [rows.columns for rows in itertools.islice(read(start, size), num_batches)]
    for batch in batches:
        assert {len(value) for value in batch.values()} == {size}
        if "image" in batch:
            assert torch.equal(batch["image"][:, 0].long(), batch["target 0"]), "inputs and targets belong together"
    return [int(label) for batch in batches for label in batch["target 0"]]


def as_array(length: int) -> Any:
    return columns(length)


def as_dataset(length: int) -> Any:
    data = columns(length)
    return TensorDataset(data["image"], data["mask"], data["label"])


def as_loader(length: int) -> Any:
    return DataLoader(as_dataset(length), batch_size=3)


KINDS = {"arrays": as_array, "dataset": as_dataset, "loader": as_loader}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 14), st.integers(0, 40), st.integers(1, 6), st.booleans())
def test_every_sample_comes_once_per_epoch_from_wherever_it_is_read(
    kind: str, length: int, start: int, size: int, shuffle: bool
) -> None:
    data = KINDS[kind](length)
    num_batches = -(-3 * length // size) + 2
    whole = labels(reader(data, shuffle=shuffle), 0, num_batches + -(-start // size), size)
    for epoch in range(len(whole) // length):
        assert sorted(whole[epoch * length : (epoch + 1) * length]) == list(range(length))
    part = labels(reader(data, shuffle=shuffle), start, num_batches, size)
    assert part[: len(whole) - start] == whole[start : start + len(part)]


def test_the_order_is_new_in_every_epoch_and_follows_from_the_seed() -> None:
    read = reader(as_array(32), shuffle=True)
    first, second = labels(read, 0, 8), labels(read, 32, 8)
    assert first != second and first != sorted(first)
    assert labels(reader(as_array(32), shuffle=True), 0, 8) == first
    assert labels(reader(as_array(32), shuffle=True, seed=1), 0, 8) != first


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_reads_only_its_own_columns(kind: str) -> None:
    inputs = next(reader(KINDS[kind](8), wants="inputs")(0, SIZE))
    targets = next(reader(KINDS[kind](8), wants="targets")(0, SIZE))
    assert sorted(inputs.columns) == ["image", "mask"] and sorted(targets.columns) == ["target 0"]
    assert inputs.digest == targets.digest
    other = next(reader(KINDS[kind](8), wants="inputs")(1, SIZE))
    assert (other.digest != inputs.digest) == (kind != "arrays"), "what could differ is compared"


def test_a_batch_has_the_examples_types_and_what_is_not_batched_is_the_examples() -> None:
    found = layout().batch(next(reader(as_array(8))(0, SIZE)).columns, torch.device("cpu"))
    assert found.args[0].dtype == found.kwargs["mask"].dtype == torch.float32
    assert torch.equal(found.args[1], torch.full((3,), 7.0))
    assert torch.equal(found.target[0], torch.arange(SIZE)) and found.target[1] == 0.5


def test_random_numbers_of_the_data_are_the_same_in_every_process_and_no_one_elses() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return self.tensors[0][index], self.tensors[1][index], torch.rand(())

    data = columns(8)
    noisy = Noisy(data["image"], data["mask"])
    torch.manual_seed(1)
    read = reader(noisy)
    first = next(read(0, SIZE)).columns["target 0"]
    left = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(left, torch.rand(2))
    torch.manual_seed(2)
    assert torch.equal(next(read(0, SIZE)).columns["target 0"], first)
    shuffled = DataLoader(as_dataset(32), batch_size=5, shuffle=True)
    orders = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        orders.append(labels(reader(shuffled), 0, 8))
    assert orders[0] == orders[1] and orders[0] != sorted(orders[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image": torch.zeros(4, 2)}, "the data have no 'mask'; the model takes image, mask"),
        ((torch.zeros(4, 2), torch.zeros(4, 1)), "have 0 columns beside image, mask, and example_targets"),
        ((torch.zeros(4, 2), torch.zeros(3, 1), torch.zeros(4)), "equally many samples, at least one, not image: 4"),
        (TensorDataset(torch.zeros(0, 2)), "the dataset is empty"),
        (3, "the data are a int; give tensors"),
        ({}, "the data are a dict; give tensors"),
    ],
)
def test_data_that_do_not_fit_are_refused(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        next(reader(data)(0, SIZE))


def test_whole_numbers_for_fractions_are_refused() -> None:
    data = columns(8) | {"image": torch.zeros(8, 2, dtype=torch.int64)}
    with pytest.raises(UsageError, match=r"image of the data is torch.int64, the example's is torch.float32"):
        layout().batch(next(reader(data)(0, SIZE)).columns, torch.device("cpu"))


def test_an_iterator_that_ends_is_opened_again_or_said_to_be_at_its_end() -> None:
    def batches() -> Iterator[Any]:
        data = columns(6)
        yield from zip(*(torch.tensor_split(data[name], [4]) for name in ("image", "mask", "label")), strict=True)

    assert labels(reader(batches), 0, 3) == [*range(6), *range(6)]
    with pytest.raises(UsageError, match="the data have ended"):
        labels(reader(batches()), 0, 3)


def test_files(tmp_path: Path) -> None:
    data = {name: value.numpy() for name, value in columns(8).items()}
    for name, value in data.items():
        np.save(tmp_path / f"{name}.npy", value)
    np.savez(tmp_path / "all.npz", image=data["image"], mask=data["mask"], label=data["label"])
    torch.save(columns(8), tmp_path / "all.pt")
    for text in ("image.npy,mask.npy,label.npy", "all.npz", "all.pt"):
        assert labels(reader(open_data(text, tmp_path)), 0, 2) == list(range(8))


def test_functions(tmp_path: Path) -> None:
    code = "import torch\ndef pairs():\n    return torch.ones(4, 2), torch.ones(4)\nx = 3\n"
    (tmp_path / "my_data.py").write_text(code)
    assert open_data("my_data.py:pairs", tmp_path)()[0].shape == (4, 2)
    assert open_data("my_data.py:x", tmp_path)() == 3
    assert callable(open_data("collections:OrderedDict"))
    with pytest.raises(UsageError, match=r"my_data.py has no nothing"):
        open_data("my_data.py:nothing", tmp_path)


def test_files_that_are_not_there_or_would_run_code_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere.npy do not exist; give file.py:function"):
        open_data("nowhere.npy", tmp_path)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    torch.save({"x": Path("/")}, tmp_path / "objects.pt")
    (tmp_path / "text.csv").write_text("1,2")
    for name in ("objects.npy", "objects.pt"):
        with pytest.raises(UsageError, match="cannot be read as data"):
            open_data(name, tmp_path)()
    with pytest.raises(UsageError, match="cannot be read as data"):
        open_data("text.csv", tmp_path)
