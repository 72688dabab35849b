from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from autopart.pytrees import open_classes, opened_objects


class Cell:
    """An object that is no pytree: tensors at several depths, and what is none."""

    def __init__(self, key: torch.Tensor | None, number: int) -> None:
        self.key, self.number, self.device = key, number, torch.device("cpu")
        self.more = {"a": [key], "b": (None, "word")}


class Store:
    def __init__(self, *cells: Cell) -> None:
        self.cells = list(cells)


class Plain:
    """Holds no tensor, so nobody has to look inside."""

    def __init__(self) -> None:
        self.number = 1


@dataclass
class Pair:
    left: torch.Tensor
    right: Any = None


def _store() -> Store:
    return Store(Cell(torch.zeros(2), 3), Cell(torch.ones(3), 4))


def test_objects_that_hold_tensors_are_taken_apart_and_put_together() -> None:
    store = _store()
    open_classes({"x": [store]})
    leaves, spec = pytree.tree_flatten(store)
    assert [tuple(leaf.shape) for leaf in leaves] == [(2,), (2,), (3,), (3,)]
    made = pytree.tree_unflatten([leaf + 1 for leaf in leaves], spec)
    assert isinstance(made, Store) and made is not store
    assert made.cells[1].number == 4 and made.cells[0].more["b"] == (None, "word")
    assert made.cells[1].key is not None and torch.equal(made.cells[1].key, torch.full((3,), 2.0))
    assert store.cells[0].key is not None and not store.cells[0].key.any()


def test_equal_structures_have_equal_specs() -> None:
    open_classes(_store())
    one, other = pytree.tree_structure(_store()), pytree.tree_structure(_store())
    assert one == other and hash(one) == hash(other)
    changed = _store()
    changed.cells[0].number = 9
    assert pytree.tree_structure(changed) != one


def test_devices_follow_the_tensors() -> None:
    open_classes(_store())
    leaves, spec = pytree.tree_flatten(_store())
    made = pytree.tree_unflatten([leaf.to("meta") for leaf in leaves], spec)
    assert made.cells[0].device == torch.device("meta")


def test_what_holds_no_tensor_stays_a_leaf() -> None:
    plain = Plain()
    open_classes((plain, torch.relu, Plain, 3, None, "word"))
    assert pytree.tree_leaves(plain) == [plain]


def test_dataclasses_are_opened_as_torch_does_and_are_values() -> None:
    pair = Pair(torch.zeros(1), Pair(torch.ones(1), 2))
    open_classes([pair])
    assert len(pytree.tree_leaves(pair)) == 3
    assert opened_objects(pair) == ()


def test_opened_objects_are_the_outermost() -> None:
    store = _store()
    open_classes(store)
    assert opened_objects({"a": (store, 1), "b": store}) == (store, store)


@pytest.mark.parametrize("filled", [False, True])
def test_caches_of_transformers(filled: bool) -> None:
    from transformers import DynamicCache, EncoderDecoderCache

    cache = DynamicCache()
    if filled:
        cache.update(torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    both = EncoderDecoderCache(cache, DynamicCache())
    open_classes((cache, both))
    for each in (cache, both):
        leaves, spec = pytree.tree_flatten(each)
        assert len(leaves) == 2 * filled
        made = pytree.tree_unflatten(leaves, spec)
        assert type(made) is type(each) and made.get_seq_length() == each.get_seq_length()


def test_a_cache_that_is_empty_in_this_call_is_compared_by_what_it_holds() -> None:
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    def made() -> Any:
        own = DynamicCache()
        own.update(torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
        return EncoderDecoderCache(own, DynamicCache())

    open_classes(made())
    one, other = made(), made()
    assert pytree.tree_structure(one) == pytree.tree_structure(other)
    again = pytree.tree_unflatten(*pytree.tree_flatten(one))
    assert again.cross_attention_cache is not one.cross_attention_cache
