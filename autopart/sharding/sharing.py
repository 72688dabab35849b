"""A stage's layers shared by several devices: its graph rewritten so that each device does its part.

Matrix products are sharded in pairs, the first by columns and the second by rows (Shoeybi et al. 2019, section 3),
embeddings by rows of the vocabulary.  From a product sharded by columns the shards are followed through the graph,
operator by operator: through the activation to the product sharded by rows, or through the heads of an attention.  An
operator without a rule is computed whole on every device, from values gathered for it, so every graph can be rewritten.

The graph is rewritten, rather than run on DTensors, because its operators have the shapes of the trace as arguments,
because DTensor decides anew at every operator of every micro-batch, and because DistributedDataParallel takes plain
parameters only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

from autopart.program import Program, Segment
from autopart.sharding.collectives import Team
from autopart.sharding.convolutions import CONVOLUTIONS
from autopart.sharding.products import PRODUCTS
from autopart.sharding.rewriting import Rewriting, Rule
from autopart.sharding.rules import is_pointwise, pointwise
from autopart.sharding.shards import Shard

__all__ = ["Shares", "sharded_weights", "share_layers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """A stage as one device of a team runs it."""

    segment: Segment
    shards: Mapping[str, Shard]
    """of the weights that are sharded; all others are whole on every device"""
    whole: tuple[str, ...]
    """matrices that could not be sharded"""


def share_layers(
    program: Program, segment: Segment, team: Team, *, tied: Collection[str] = (), pinned: Collection[str] = ()
) -> Shares:
    """A stage's segment for one device of a team; its weights are new parameters where they are sharded.

    Args:
        program: the model.
        segment: the whole stage.
        team: the devices.
        tied: names of weights that other stages use as well, with as many devices: sharded by rows or not at all.
        pinned: names of weights that must stay whole.
    """
    rewriting = _rewritten(program, segment, team, frozenset(tied), frozenset(pinned))
    body = fx.GraphModule(rewriting.root(), rewriting.graph, class_name="SharedSegment")
    matrices = (name for name, weight in segment.named_parameters() if weight.dim() > 1)
    return Shares(
        segment=segment.with_body(body), shards=rewriting.shards,
        whole=tuple(name for name in matrices if name not in rewriting.shards)
    )


def sharded_weights(program: Program, num_devices: int) -> frozenset[str]:
    """Names of the weights and buffers that so many devices would shard if they shared the whole model as one stage.

    All others every one of them would have whole.  Nothing is sent, and weights may be on the meta device.
    """
    segment = program.segment(0, len(program.graph.layers))
    return frozenset(_rewritten(program, segment, Team(None, 0, num_devices), frozenset(), frozenset()).shards)


def _rewritten(
    program: Program, segment: Segment, team: Team, tied: frozenset[str], pinned: frozenset[str]
) -> Rewriting:
    shapes = {value.name: value.shape for value in program.graph.crossing(segment.first)}
    rewriting = Rewriting(segment, team, shapes, _rule_of, tied=tied, pinned=pinned)
    rewriting.run()
    return rewriting


def _rule_of(node: fx.Node) -> Rule | None:
    return PRODUCTS.get(node.target) or CONVOLUTIONS.get(node.target) or (pointwise if is_pointwise(node) else None)
