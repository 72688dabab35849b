"""Convolutions sharded by channels, in pairs like matrix products, with what stands between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autopart.sharding.collectives import Total
from autopart.sharding.rewriting import Placed, Rewriting, Rule
from autopart.sharding.shards import Shard

__all__ = ["CONVOLUTIONS"]

aten = torch.ops.aten

CHANNELS = 1
"""dimension of what comes in and goes out"""
GROUPS = 6
"""place of the argument"""

TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
PLAIN = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
POOLS = (
    aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
)  # fmt: skip


def _convolution(do: Rewriting, node: fx.Node) -> Placed:
    """By output channels of a whole value; by input channels of one that is sharded in them."""
    value, weight, bias, *rest = _arguments(node)
    before, size = do.shape(value), do.shape(weight)
    if before is None or size is None or len(before) != len(size) or not do.may_shard(weight, rows=False):
        return None
    shard, outputs = do.shard(value), 1 if node.target in TRANSPOSED else 0
    if rest[GROUPS - 3] != 1:
        return _grouped(do, node) if node.target in PLAIN else None
    if shard is not None and shard.dim == CHANNELS:
        part = do.shard_weight(weight, Shard(1 - outputs, shard.sections))
        total = do.emit(node, Total(do.team), do.emit(node, _target(node), do.own(value), part, None, *rest))
        if bias is None:
            return total, None
        by_channel = do.emit(node, aten.reshape.default, do.whole(bias), [-1, *(1 for _ in before[2:])])
        return do.emit(node, aten.add.Tensor, total, by_channel), None
    if shard is not None or size[outputs] < do.team.size:
        return None
    part, own = do.shard_weight(weight, Shard(outputs, (size[outputs],))), Shard(0, (size[outputs],))
    made = do.emit(node, _target(node), do.shared(value), part, _own_part(do, bias, own), *rest)
    return made, Shard(CHANNELS, (size[outputs],))


def _grouped(do: Rewriting, node: fx.Node) -> Placed:
    """Groups of channels are independent of each other."""
    value, weight, bias, *rest = _arguments(node)
    shard, size, groups = do.shard(value), do.shape(weight), rest[GROUPS - 3]
    if shard is None or size is None or shard.dim != CHANNELS or len(shard.sections) > 1 or groups % do.team.size:
        return None
    own = Shard(0, (size[0],))
    rest[GROUPS - 3] = groups // do.team.size
    part = do.shard_weight(weight, own)
    made = do.emit(node, _target(node), do.own(value), part, _own_part(do, bias, own), *rest)
    return made, Shard(CHANNELS, own.sections)


def _batch_norm(do: Rewriting, node: fx.Node) -> Placed:
    """Channels have statistics of their own, so have devices."""
    value, weight, bias, mean, variance, *rest = _arguments(node)
    shard, buffers = do.shard(value), [each for each in (mean, variance) if each is not None]
    if shard is None or shard.dim != CHANNELS or not all(do.may_shard_buffer(each) for each in buffers):
        return None
    own = shard.at(0)
    parts = [_own_part(do, each, own) for each in (weight, bias)]
    statistics = [None if each is None else do.shard_buffer(each, own) for each in (mean, variance)]
    return do.emit(node, _target(node), do.own(value), *parts, *statistics, *rest), shard


def _group_norm(do: Rewriting, node: fx.Node) -> Placed:
    value, groups, weight, bias, *rest = _arguments(node)
    shard = do.shard(value)
    if shard is None or shard.dim != CHANNELS or len(shard.sections) > 1 or groups % do.team.size:
        return None
    parts = [_own_part(do, each, shard.at(0)) for each in (weight, bias)]
    return do.emit(node, _target(node), do.own(value), groups // do.team.size, *parts, *rest), shard


def _by_channel(do: Rewriting, node: fx.Node) -> Placed:
    """Pools and the like, which leave samples and channels apart."""
    value = node.all_input_nodes[0]
    shard, shape = do.shard(value), do.shape(value)
    if shard is None or shape is None or shard.dim > CHANNELS or len(shape) < 3 or len(node.all_input_nodes) > 1:
        return None
    return do.graph.node_copy(node, do.own), shard


def _own_part(do: Rewriting, weight: Any, shard: Shard) -> fx.Node | None:
    """Of a vector by channels, if there is one."""
    if weight is None:
        return None
    return do.shard_weight(weight, shard) if do.may_shard(weight, rows=False) else do.part(weight, shard)


def _arguments(node: fx.Node) -> list[Any]:
    """All of an operator's arguments in their order, with its defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    return [given.get(argument.name, argument.default_value) for argument in schema]


def _target(node: fx.Node) -> Any:
    return node.target


CONVOLUTIONS: dict[Any, Rule] = {
    aten.batch_norm.default: _batch_norm,
    aten.group_norm.default: _group_norm,
    **dict.fromkeys((*PLAIN, *TRANSPOSED), _convolution),
    **dict.fromkeys(POOLS, _by_channel),
}
