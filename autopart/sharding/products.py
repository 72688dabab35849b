"""Matrix products sharded over devices: by columns, by rows, or by what is a batch to them (see tensorparallel).

A product sharded by columns gives every device some of the outputs and needs no message; sharded by rows it takes
inputs that are sharded already and gives every device a term of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from autopart.sharding.collectives import Total
from autopart.sharding.rewriting import Placed, Rewriting, Rule
from autopart.sharding.rules import RULES, is_pointwise
from autopart.sharding.shards import Shard

__all__ = ["PRODUCTS"]

aten = torch.ops.aten

SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default)
RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unflatten.int)
ONE_TO_ONE = (aten.clone.default, aten.contiguous.default, aten.dropout.default, aten.to.dtype)


def _linear(do: Rewriting, node: fx.Node) -> Placed:
    value, weight, bias = (*node.args, None)[:3]
    return _product(do, node, value, weight, bias, outputs=0, multiply=aten.linear.default)


def _addmm(do: Rewriting, node: fx.Node) -> Placed:
    bias, value, weight = node.args
    return None if node.kwargs else _product(do, node, value, weight, bias, outputs=1, multiply=aten.mm.default)


def _matmul(do: Rewriting, node: fx.Node) -> Placed:
    value, other = node.args
    if do.is_weight(other) and len(do.shape(other) or ()) == 2:  # type: ignore[arg-type]
        return _product(do, node, value, other, None, outputs=1, multiply=node.target)
    return _batched(do, node)


def _product(
    do: Rewriting, node: fx.Node, value: Any, weight: Any, bias: Any, *, outputs: int, multiply: Any
) -> Placed:
    """A product with a weight, whose dimension ``outputs`` is the one that the result has."""
    before, after, size = do.shape(value), do.shape(node), do.shape(weight)
    if before is None or after is None or size is None or not do.is_weight(weight):
        return None
    shard = do.shard(value)
    by_rows = Shard(1 - outputs, shard.sections) if shard is not None and shard.dim == len(before) - 1 else None
    if by_rows is not None and do.may_shard(weight, rows=False):
        term = do.emit(node, multiply, do.own(value), do.shard_weight(weight, by_rows))
        total = do.emit(node, Total(do.team), term)
        return (do.emit(node, aten.add.Tensor, total, do.whole(bias)) if bias is not None else total), None
    if shard is not None and by_rows is None and not do.may_shard(weight, rows=True):
        return _apart(do, node, value, weight, bias), shard
    if size[outputs] < do.team.size or not do.may_shard(weight, rows=outputs == 0):
        return None
    sections = _sections(do, node, size[outputs]) if do.may_shard(weight, rows=False) else (size[outputs],)
    part = do.shard_weight(weight, Shard(outputs, sections))
    made = do.emit(node, multiply, do.shared(value), part)
    if bias is not None:
        own = Shard(0, sections)
        part = do.shard_weight(bias, own) if do.may_shard(bias, rows=False) else do.part(bias, own)
        made = do.emit(node, aten.add.Tensor, made, part)
    return made, Shard(len(after) - 1, sections)


def _apart(do: Rewriting, node: fx.Node, value: fx.Node, weight: fx.Node, bias: Any) -> fx.Node:
    """Every device the rows that it has, with the whole weight."""
    made = {weight: do.shared(weight), value: do.own(value)}
    if bias is not None:
        made[bias] = do.shared(bias)
    return do.graph.node_copy(node, made.__getitem__)


def _batched(do: Rewriting, node: fx.Node) -> Placed:
    """Of two values, sharded over their batch, over the rows of one or the columns of the other, or over the sum."""
    one, other = node.args
    shapes = [do.shape(one), do.shape(other), do.shape(node)]  # type: ignore[arg-type]
    if any(shape is None or len(shape) != len(shapes[2] or ()) for shape in shapes) or len(shapes[2] or ()) < 2:
        return None
    num_dims = len(shapes[2] or ())
    left, right = do.shard(one), do.shard(other)  # type: ignore[arg-type]
    if left is not None and left == right and left.dim < num_dims - 2:
        return do.graph.node_copy(node, do.own), left
    if left is not None and right is not None:
        is_sum = left.dim == num_dims - 1 and right.dim == num_dims - 2 and left.sections == right.sections
        return (do.emit(node, Total(do.team), do.graph.node_copy(node, do.own)), None) if is_sum else None
    if left is not None and left.dim == num_dims - 2:
        return do.emit(node, _target(node), do.own(one), do.shared(other)), left  # type: ignore[arg-type]
    if right is not None and right.dim == num_dims - 1:
        return do.emit(node, _target(node), do.shared(one), do.own(other)), right  # type: ignore[arg-type]
    return None


def _target(node: fx.Node) -> Callable[..., Any]:
    assert callable(node.target)
    return node.target


def _sections(do: Rewriting, node: fx.Node, size: int) -> tuple[int, ...]:
    """Where a result is sharded: at the borders at which its readers take it apart, as queries from keys and values."""
    for user in node.users:
        shape = do.shape(user)
        if user.target in SPLITS and _dim_of(user, len(do.shape(node) or ())):
            sizes = tuple(int(piece.shape[-1]) for piece in user.meta["val"])
            return sizes if all(each % do.team.size == 0 for each in sizes) else (size,)
        if user.target is aten.slice.Tensor and user.args[1:2] in ((-1,), (len(do.shape(node) or ()) - 1,)):
            return _sliced(do, node, size)
        if user.target in RESHAPES and shape is not None and shape[-1] != size:
            return _unfolded(do, node, user, size)
        if user.target in (*ONE_TO_ONE, *RESHAPES) or (is_pointwise(user) and len(user.all_input_nodes) == 1):
            return _sections(do, user, size)
    return (size,)


def _dim_of(split: fx.Node, num_dims: int) -> bool:
    """Whether a split is along the last dimension."""
    dim = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    return isinstance(dim, int) and dim % max(1, num_dims) == num_dims - 1


def _sliced(do: Rewriting, node: fx.Node, size: int) -> tuple[int, ...]:
    """The pieces that slices of the last dimension take, if they add up to it."""
    starts = sorted({
        min(int(user.args[2]), size) if len(user.args) > 2 and isinstance(user.args[2], int) and user.args[2] > 0 else 0
        for user in node.users if user.target is aten.slice.Tensor
    } | {0})  # fmt: skip
    sizes = tuple(end - start for start, end in zip(starts, [*starts[1:], size], strict=True))
    return sizes if all(each > 0 and each % do.team.size == 0 for each in sizes) else (size,)


def _unfolded(do: Rewriting, node: fx.Node, user: fx.Node, size: int) -> tuple[int, ...]:
    """(3, heads, head size): three sections; (heads, ...): one, if the heads can be dealt evenly."""
    before, after = do.shape(node), do.shape(user)
    if before is None or after is None or len(after) <= len(before) or after[: len(before) - 1] != before[:-1]:
        return (size,)
    leading = after[len(before) - 1]
    if leading % do.team.size == 0 or size % leading or (size // leading) % do.team.size:
        return (size,)
    return (size // leading,) * leading


PRODUCTS: dict[Any, Rule] = {
    **RULES,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.bmm.default: _batched,
}
