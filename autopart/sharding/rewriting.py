"""The pass that rewrites a stage's graph for one device of a team, by rules that it is given.

What rules ask for (a device's part of a value, the whole of it, a part of a weight) is made once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from autopart.segment import Segment
from autopart.sharding.collectives import Gather, OwnPart, Share, Team
from autopart.sharding.inplace import writes, written
from autopart.sharding.shards import Shape, Shard

__all__ = ["Placed", "Rewriting", "Rule", "Shards", "reads_rows"]

Shards = Shard | tuple[Shard | None, ...] | None
"""of a value, or of each of several tensors"""
Placed = tuple[fx.Node, Shards] | None
"""what a rule makes of an operator: the new node and how its result is sharded; None: it is to be computed whole"""
Rule = Callable[["Rewriting", fx.Node], Placed]

WEIGHT_VIEWS = (torch.ops.aten.t.default, torch.ops.aten.to.dtype, torch.ops.aten.to.dtype_layout)


class Rewriting:
    """The pass over a stage's graph; ``shards`` has the weights that it shard."""

    def __init__(
        self, segment: Segment, team: Team, shapes: Mapping[str, Shape], rule_of: Callable[[fx.Node], Rule | None], *,
        tied: frozenset[str], pinned: frozenset[str],
    ) -> None:  # fmt: skip
        self.team, self.graph = team, fx.Graph()
        self.shards: dict[str, Shard] = {}
        self._rule_of = rule_of
        self._body, self._shapes, self._tied, self._pinned = segment.body, shapes, tied, pinned
        self._made: dict[fx.Node, fx.Node] = {}
        self._shard_of: dict[fx.Node, Shards] = {}
        self._forms: dict[tuple[fx.Node, Shard | str | None], fx.Node] = {}
        self._moving: set[fx.Node] = set()
        self._written = written(segment.body.graph)
        self._read_whole: set[str] = set()
        self._weights = self._find_weights()
        self._readers: dict[str, list[tuple[fx.Node, fx.Node]]] = {}
        for node, name in self._weights.items():
            reads = [(node, user) for user in node.users if user not in self._weights]
            self._readers.setdefault(name, []).extend(reads)

    def run(self) -> None:
        """Rewrites the whole graph."""
        for node in self._body.graph.nodes:
            if self.is_weight(node):
                continue  # placed where it is first read, when it is known how
            self._moving.update([node] if self._moves(node) else [])
            if node.op == "output":
                self.graph.output(tuple(self.whole(each) for each in node.args[0]))
            elif node.op == "call_function":
                self._place(node)
            else:
                self._made[node] = self.graph.node_copy(node)

    def root(self) -> dict[str, Any]:
        """What the new graph reads, by name."""
        targets = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        found = {name: attrgetter(name)(self._body) for name in targets}
        for name, shard in self.shards.items():
            weight, part = found[name], self.team.own(found[name].detach(), shard)
            found[name] = nn.Parameter(part, weight.requires_grad) if isinstance(weight, nn.Parameter) else part
        return found

    def shard(self, node: fx.Node) -> Shard | None:
        """How a value is sharded; None: it is whole, or several tensors."""
        found = self._shard_of.get(node)
        return found if isinstance(found, Shard) else None

    def shards_in(self, node: fx.Node) -> tuple[Shard | None, ...]:
        """How the tensors of a list are sharded."""
        found = self._shard_of.get(node)
        return found if isinstance(found, tuple) else ()

    def shape(self, node: fx.Node) -> Shape | None:
        """The shape of the whole value, if it is a tensor and known."""
        if node.op == "placeholder":
            return self._shapes.get(node.name)
        value = attrgetter(str(node.target))(self._body) if node.op == "get_attr" else node.meta.get("val")
        return tuple(value.shape) if isinstance(value, torch.Tensor) else None

    def is_moving(self, node: fx.Node) -> bool:
        """Whether a value depends on weights or on floating inputs, so that its gradient costs a message."""
        return node in self._moving

    def own(self, node: fx.Node) -> fx.Node:
        """What this device has of a value, as it is."""
        return self._made[node] if node in self._made else self.whole(node)

    def whole(self, node: fx.Node) -> fx.Node:
        """The whole value."""
        if self.is_weight(node):
            return self._whole_weight(node)
        shard = self.shard(node)
        return self._made[node] if shard is None else self._form(node, None, lambda: Gather(self.team, shard))

    def shared(self, node: fx.Node) -> fx.Node:
        """A whole value to be read by sharded computation."""
        value = self.whole(node)
        reads = self.is_weight(node) or self.is_moving(node)
        return self._form(node, "shared", lambda: Share(self.team), value) if reads else value

    def part(self, node: fx.Node, shard: Shard) -> fx.Node:
        """A value sharded in this way."""
        if self.shard(node) == shard:
            return self._made[node]
        value = self.whole(node)
        return self._form(node, shard, lambda: OwnPart(self.team, shard), value)

    def emit(self, like: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new operator in the place of an old one."""
        made = self.graph.call_function(target, args, kwargs)
        made.meta = {key: value for key, value in like.meta.items() if key != "val"}
        return made

    def is_weight(self, node: fx.Node) -> bool:
        """Whether a node is a parameter, or a view of one that only matrix products and the like could read."""
        return node in self._weights

    def may_shard(self, node: fx.Node, *, rows: bool) -> bool:
        """Whether a weight may be sharded: nothing else reads it, or everything that does wants the same rows.

        Args:
            node: the weight.
            rows: by its first dimension, which embeddings and the products to a vocabulary share.
        """
        if not self.is_weight(node):
            return False
        name = self._weights[node]
        readers = self._readers[name]
        if name in self._pinned or name in self._read_whole:
            return False
        if len(readers) == 1 and name not in self._tied:
            return True
        return rows and all(reads_rows(read, user) for read, user in readers)

    def may_shard_buffer(self, node: fx.Node) -> bool:
        """Whether a buffer is read by one operator only."""
        readers = [each for each in self._body.graph.nodes if each.op == "get_attr" and each.target == node.target]
        return node.op == "get_attr" and readers == [node] and len(node.users) == 1 and node.target not in self._pinned

    def shard_buffer(self, node: fx.Node, shard: Shard) -> fx.Node:
        """This device's part of a buffer; ``may_shard_buffer`` has to allow it."""
        self.shards[str(node.target)] = shard
        return self._made[node]

    def shard_weight(self, node: fx.Node, shard: Shard) -> fx.Node:
        """This device's part of a weight; ``may_shard`` has to allow it."""
        return self._weight(node, shard)

    def _place(self, node: fx.Node) -> None:
        rule = self._rule_of(node)
        found = rule(self, node) if rule is not None and not (writes(node) and node in self._written) else None
        if found is None:
            self._made[node] = self.graph.node_copy(node, self.whole_of)
            return
        self._made[node], shards = found
        if isinstance(shards, Shard) and node in self._written:
            self._made[node], shards = self.emit(node, Gather(self.team, shards), self._made[node]), None
        if shards is not None:
            self._shard_of[node] = shards

    def whole_of(self, node: fx.Node) -> fx.Node:
        """The whole value, also where it is several tensors."""
        shards = self.shards_in(node)
        if not any(shards):
            return self.whole(node)
        pieces = []
        for index, shard in enumerate(shards):
            piece = self.graph.call_function(_item, (self._made[node], index))
            pieces.append(piece if shard is None else self.graph.call_function(Gather(self.team, shard), (piece,)))
        return self.graph.call_function(_listed, tuple(pieces))

    def _form(
        self, node: fx.Node, key: Shard | str | None, move: Callable[[], Callable[..., Any]],
        value: fx.Node | None = None,
    ) -> fx.Node:  # fmt: skip
        if (node, key) not in self._forms or node in self._written:  # a copy from before the write is not it
            self._forms[node, key] = self.graph.call_function(move(), (value or self._made[node],))
        return self._forms[node, key]

    def _weight(self, node: fx.Node, shard: Shard | None) -> fx.Node:
        """A weight, or a view of one, placed at its first use; its shard is known by then."""
        if node in self._made:
            return self._made[node]
        if node.op == "get_attr":
            self._made[node] = self.graph.get_attr(str(node.target))
            if shard is not None:
                self.shards[str(node.target)] = shard
        else:
            source = node.all_input_nodes[0]
            flips = node.target is torch.ops.aten.t.default and shard is not None
            self._weight(source, shard.at(1 - shard.dim) if shard is not None and flips else shard)
            self._made[node] = self.graph.node_copy(node, self._made.__getitem__)
        return self._made[node]

    def _whole_weight(self, node: fx.Node) -> fx.Node:
        name = self._weights[node]
        if name not in self.shards:
            self._read_whole.add(name)
            return self._weight(node, None)
        shard = self.shards[name]  # by rows, so not a view
        return self._form(node, None, lambda: Gather(self.team, shard), self._weight(node, shard))

    def _find_weights(self) -> dict[fx.Node, str]:
        """Parameters and simple views of them, each with the parameter's name."""
        found: dict[fx.Node, str] = {}
        for node in self._body.graph.nodes:
            if node in self._written:
                continue
            if node.op == "get_attr" and isinstance(attrgetter(str(node.target))(self._body), nn.Parameter):
                found[node] = str(node.target)
            elif node.target in WEIGHT_VIEWS and node.all_input_nodes[0] in found:
                found[node] = found[node.all_input_nodes[0]]
        return found

    def _moves(self, node: fx.Node) -> bool:
        if node.op == "placeholder":
            return True
        return node.op == "call_function" and any(
            source in self._moving or self.is_weight(source) for source in node.all_input_nodes
        )


def _item(values: Any, index: int) -> Any:
    return values[index]


def _listed(*values: torch.Tensor) -> list[torch.Tensor]:
    return list(values)


def reads_rows(weight: fx.Node, reader: fx.Node) -> bool:
    """Whether a reader of a weight takes it for a table of rows: an embedding, or the product with each row."""
    places: dict[Any, int] = {torch.ops.aten.embedding.default: 0, torch.ops.aten.linear.default: 1}
    place = places.get(reader.target)
    return weight.op == "get_attr" and place is not None and reader.args[place] is weight
