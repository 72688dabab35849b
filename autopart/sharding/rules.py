"""What each operator makes of sharded values: a rule gives the operator's new node and how its result is sharded.

A rule that returns None has found nothing better than to compute the operator whole.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from autopart.sharding.collectives import OwnChance, VocabularyPart
from autopart.sharding.rewriting import Placed, Rewriting, Rule
from autopart.sharding.shards import Shape, Shard, part_lengths, resectioned, reshaped

__all__ = ["RULES", "is_pointwise", "pointwise"]

aten = torch.ops.aten


def is_pointwise(node: fx.Node) -> bool:
    """Whether an operator computes every element from those in the same place."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def pointwise(do: Rewriting, node: fx.Node) -> Placed:
    """Shard like its sharded operands; whole ones of constants and weights are sharded to fit."""
    shape = do.shape(node)
    shard = _aligned(do, node.all_input_nodes, shape)
    if shard is None or shape is None:
        return None
    made: dict[fx.Node, fx.Node] = {}
    for each in node.all_input_nodes:
        own = do.shape(each)
        if own is None:
            return None
        dim = shard.dim - len(shape) + len(own)
        if do.shard(each) is not None:
            made[each] = do.own(each)
        elif dim < 0 or own[dim] == 1:
            made[each] = do.shared(each)
        elif do.is_moving(each):
            return None  # a residual: to gather here costs a message, to shard it would cost one too, and go on costing
        else:
            made[each] = do.part(each, shard.at(dim))
    return do.graph.node_copy(node, made.__getitem__), shard


def _aligned(do: Rewriting, nodes: Sequence[fx.Node], shape: Shape | None) -> Shard | None:
    """The shard of the result, if the shards of all operands are the same, counted from the back."""
    found = set()
    for node in nodes:
        own, shard = do.shape(node), do.shard(node)
        if any(do.shards_in(node)):
            return None
        if shard is not None and own is not None and shape is not None:
            found.add(shard.at(shard.dim - len(own) + len(shape)))
    return found.pop() if len(found) == 1 else None


def _same(do: Rewriting, node: fx.Node) -> Placed:
    """One tensor in, one of its shape out."""
    source, *others = node.all_input_nodes
    if do.shard(source) is None or others:
        return None
    return do.graph.node_copy(node, do.own), do.shard(source)


def _random(do: Rewriting, node: fx.Node) -> Placed:
    source = node.all_input_nodes[0]
    if do.shard(source) is None:
        return None
    target = OwnChance(do.team, node.target)  # type: ignore[arg-type]
    return do.emit(node, target, do.own(source), *node.args[1:], **node.kwargs), do.shard(source)


def _reshape(do: Rewriting, node: fx.Node) -> Placed:
    source = node.all_input_nodes[0]
    shard, before, after = do.shard(source), do.shape(source), do.shape(node)
    if shard is None or before is None or after is None or len(node.all_input_nodes) > 1:
        return None
    found = reshaped(shard, before, after, do.team.size)
    if found is None:
        return None
    return do.emit(node, aten.reshape.default, do.own(source), _local(do, after, found)), found


def _expand(do: Rewriting, node: fx.Node) -> Placed:
    source = node.all_input_nodes[0]
    shard, before, after = do.shard(source), do.shape(source), do.shape(node)
    if shard is None or before is None or after is None or len(node.all_input_nodes) > 1:
        return None
    found = shard.at(shard.dim - len(before) + len(after))
    return do.emit(node, aten.expand.default, do.own(source), _local(do, after, found)), found


def _permute(do: Rewriting, node: fx.Node) -> Placed:
    source = node.all_input_nodes[0]
    shard, shape = do.shard(source), do.shape(source)
    if shard is None or shape is None:
        return None
    order = list(range(len(shape)))
    if node.target is aten.permute.default:
        order = [_dim(each, shape) for each in _argument(node, 1)]
    elif node.target is aten.t.default:
        order.reverse()
    else:
        one, other = _dim(node.args[1], shape), _dim(node.args[2], shape)
        order[one], order[other] = order[other], order[one]
    return do.graph.node_copy(node, do.own), shard.at(order.index(shard.dim))


def _select(do: Rewriting, node: fx.Node) -> Placed:
    source = node.all_input_nodes[0]
    shard, shape = do.shard(source), do.shape(source)
    dim = None if shard is None or shape is None else _dim(_argument(node, 1, 0), shape)
    if shard is None or dim is None or dim == shard.dim:
        return None
    return do.graph.node_copy(node, do.own), shard.at(shard.dim - (dim < shard.dim))


def _slice(do: Rewriting, node: fx.Node) -> Placed:
    """Along another dimension, or whole sections of the sharded one."""
    source = node.all_input_nodes[0]
    shard, before, after = do.shard(source), do.shape(source), do.shape(node)
    if shard is None or before is None or after is None or len(node.all_input_nodes) > 1:
        return None
    if _dim(_argument(node, 1, 0), before) != shard.dim or before == after:
        return do.graph.node_copy(node, do.own), shard
    start = _argument(node, 2, 0) or 0
    start = min(start if start >= 0 else start + before[shard.dim], before[shard.dim])
    sizes = (start, after[shard.dim], before[shard.dim] - start - after[shard.dim])
    sections = resectioned(shard, sizes) if _argument(node, 4, 1) == 1 and min(sizes) >= 0 else None
    if sections is None or not sections[1]:
        return None
    first, length = (sum(part_lengths(Shard(0, each), do.team.size, do.team.index)) for each in sections[:2])
    return do.emit(node, aten.narrow.default, do.own(source), shard.dim, first, length), Shard(shard.dim, sections[1])


def _split(do: Rewriting, node: fx.Node) -> Placed:
    """Along another dimension, or at the borders of sections."""
    source = node.all_input_nodes[0]
    shard, before = do.shard(source), do.shape(source)
    pieces = node.meta.get("val")
    if shard is None or before is None or not isinstance(pieces, list | tuple):
        return None
    is_unbind = node.target is aten.unbind.int
    dim = _dim(_argument(node, 1 if is_unbind else 2, 0), before)
    if dim != shard.dim:
        each = shard.at(shard.dim - (is_unbind and dim < shard.dim))
        return do.graph.node_copy(node, do.own), (each,) * len(pieces)
    sections = None if is_unbind else resectioned(shard, [piece.shape[dim] for piece in pieces])
    if sections is None:
        return None
    lengths = [sum(part_lengths(Shard(0, each), do.team.size, do.team.index)) for each in sections]
    made = do.emit(node, aten.split_with_sizes.default, do.own(source), lengths, dim)
    return made, tuple(Shard(dim, each) for each in sections)


def _getitem(do: Rewriting, node: fx.Node) -> Placed:
    source = node.all_input_nodes[0]
    shards = do.shards_in(source)
    return (do.graph.node_copy(node, do.own), shards[node.args[1]]) if shards else None  # type: ignore[index]


def _cat(do: Rewriting, node: fx.Node) -> Placed:
    """Along another dimension than the sharded one, which is the same of all."""
    shape = do.shape(node)
    tensors, is_stack = node.args[0], node.target is aten.stack.default
    assert isinstance(tensors, list | tuple)
    shards = {do.shard(each) for each in tensors if isinstance(each, fx.Node)} - {None}
    if len(shards) != 1 or shape is None:
        return None
    (shard,) = shards
    assert shard is not None
    dim = _dim(_argument(node, 1, 0), shape)
    if dim == shard.dim and not is_stack:
        return None
    if any(do.shard(each) is None and do.is_moving(each) for each in node.all_input_nodes):
        return None
    made = do.graph.node_copy(node, lambda each: do.part(each, shard))
    return made, shard.at(shard.dim + (is_stack and dim <= shard.dim))


def _rows(do: Rewriting, node: fx.Node) -> Placed:
    """Softmax and normalisation over other dimensions than the sharded one."""
    source, *weights = node.all_input_nodes
    shard, shape = do.shard(source), do.shape(source)
    if shard is None or shape is None or any(do.shard(each) is not None for each in weights):
        return None
    over = _argument(node, 1)
    dims = range(len(shape) - len(over), len(shape)) if isinstance(over, list | tuple) else (_dim(over, shape),)
    if shard.dim in dims:
        return None
    made = {each: do.shared(each) for each in weights} | {source: do.own(source)}
    return do.graph.node_copy(node, made.__getitem__), shard


def _reduce(do: Rewriting, node: fx.Node) -> Placed:
    """Sums and means over other dimensions than the sharded one."""
    source, *others = node.all_input_nodes
    shard, before, after = do.shard(source), do.shape(source), do.shape(node)
    over = node.args[1] if len(node.args) > 1 else None
    if shard is None or before is None or after is None or others or not isinstance(over, list | tuple | int):
        return None
    dims = {_dim(each, before) for each in (over if isinstance(over, list | tuple) else [over])}
    if shard.dim in dims:
        return None
    lost = 0 if len(after) == len(before) else sum(dim < shard.dim for dim in dims)
    return do.graph.node_copy(node, do.own), shard.at(shard.dim - lost)


def _attention(do: Rewriting, node: fx.Node) -> Placed:
    """Heads are independent of each other."""
    query, key, value, *rest = node.args
    shards = [do.shard(each) for each in (query, key, value)]  # type: ignore[arg-type]
    shape = do.shape(node)
    if shape is None or any(shard is None for shard in shards) or len({shard.dim for shard in shards if shard}) != 1:
        return None
    shard = shards[0]
    assert shard is not None
    if shard.dim >= len(shape) - 2 or any(len(each.sections) != 1 for each in shards if each):
        return None
    mask = rest[0] if rest else node.kwargs.get("attn_mask")
    made = {each: do.own(each) for each in (query, key, value)}  # type: ignore[arg-type]
    if isinstance(mask, fx.Node):
        own = do.shape(mask)
        if own is None or do.shard(mask) is not None or (do.is_moving(mask) and len(own) != len(shape)):
            return None
        dim = shard.dim - len(shape) + len(own)
        made[mask] = do.shared(mask) if dim < 0 or own[dim] == 1 else do.part(mask, shard.at(dim))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), made.__getitem__)
    drops = (rest[1] if len(rest) > 1 else node.kwargs.get("dropout_p", 0.0)) != 0.0
    target: Any = OwnChance(do.team, node.target) if drops else node.target  # type: ignore[arg-type]
    return do.emit(node, target, *args, **kwargs), shard


def _embedding(do: Rewriting, node: fx.Node) -> Placed:
    weight, indices, *rest = node.args
    shape = do.shape(weight)  # type: ignore[arg-type]
    if shape is None or not do.may_shard(weight, rows=True) or shape[0] < do.team.size:  # type: ignore[arg-type]
        return None
    part = do.shard_weight(weight, Shard(0, (shape[0],)))  # type: ignore[arg-type]
    target = VocabularyPart(do.team, shape[0])
    return do.emit(node, target, part, do.whole(indices), *rest, **node.kwargs), None  # type: ignore[arg-type]


def _dim(dim: Any, shape: Shape) -> int:
    return int(dim) % max(1, len(shape))


def _argument(node: fx.Node, index: int, default: Any = None) -> Any:
    if index < len(node.args):
        return node.args[index]
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return node.kwargs.get(names[index], default)


def _local(do: Rewriting, shape: Shape, shard: Shard) -> list[int]:
    """The shape of this device's part."""
    length = sum(part_lengths(shard, do.team.size, do.team.index))
    return [length if dim == shard.dim else size for dim, size in enumerate(shape)]


RULES: dict[Any, Rule] = {
    operator.getitem: _getitem,
    aten.scaled_dot_product_attention.default: _attention,
    aten.embedding.default: _embedding,
    aten.cat.default: _cat, aten.stack.default: _cat,
    aten.expand.default: _expand,
    aten.select.int: _select, aten.slice.Tensor: _slice,
}  # fmt: skip
RULES |= dict.fromkeys((aten.dropout.default,), _random)
RULES |= dict.fromkeys((
    aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default, aten.to.dtype,
    aten.to.dtype_layout, aten.to.device, aten._to_copy.default, aten.zeros_like.default, aten.ones_like.default,
), _same)  # fmt: skip
RULES |= dict.fromkeys((
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
), _reshape)  # fmt: skip
RULES |= dict.fromkeys((aten.permute.default, aten.t.default, aten.transpose.int), _permute)
RULES |= dict.fromkeys((
    aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default, aten.unbind.int,
), _split)  # fmt: skip
RULES |= dict.fromkeys((
    aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten.layer_norm.default, aten.rms_norm.default,
), _rows)  # fmt: skip
RULES |= dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default), _reduce)
