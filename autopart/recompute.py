"""Activation checkpointing of a part of a graph: its intermediates are computed again in backward, not kept.

Tracing marks the operators that the model computed inside ``torch.utils.checkpoint`` with the ``Recompute`` that says
how; ``bundle`` makes of each such region one operator that calls ``torch.utils.checkpoint`` again.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import checkpoint

__all__ = ["Recompute", "bundle", "bundle_nodes", "mark", "mark_held", "region_of"]

_REGION, _HELD = "checkpoint", "held"
_TAKES_EARLY_STOP = "early_stop" in inspect.signature(checkpoint.checkpoint).parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute:
    """One call of ``torch.utils.checkpoint.checkpoint``, with its options; callable on the region's graph."""

    number: int
    """tells regions apart"""
    reentrant: bool
    preserves_random_state: bool
    context_fn: Callable[[], Any] | None
    early_stop: bool

    def __call__(
        self, body: fx.GraphModule, held: Sequence[torch.Tensor], *values: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The region's outputs.

        Args:
            body: the region's operators, as a graph of ``values`` followed by ``held``.
            held: weights, which need not be kept for backward: they may be written in the region.
            values: what the region reads of the computation so far.
        """
        options: dict[str, Any] = {"context_fn": self.context_fn} if self.context_fn else {}
        if self.reentrant:  # the whole region runs again, and nobody looks whether it saves the same tensors
            options["determinism_check"] = "none"
        if _TAKES_EARLY_STOP:
            options["early_stop"] = self.early_stop
        is_fake = any(isinstance(tensor, FakeTensor) for tensor in (*values, *held))
        results: tuple[torch.Tensor, ...] = checkpoint.checkpoint(
            lambda *given: body(*given, *held), *values, use_reentrant=False,
            preserve_rng_state=self.preserves_random_state and not is_fake, **options,
        )  # fmt: skip
        return results

    @property
    def __name__(self) -> str:
        return "recompute"


def mark(node: fx.Node, region: Recompute | None) -> None:
    """Say that a node belongs to a checkpointed region, or to none."""
    node.meta.pop(_REGION, None)
    if region:
        node.meta[_REGION] = region


def mark_held(placeholder: fx.Node) -> None:
    """Say that what comes into an inner graph here is a weight."""
    placeholder.meta[_HELD] = True


def region_of(node: fx.Node) -> Recompute | None:
    """The checkpointed region that a node belongs to, if it belongs to one."""
    found: Recompute | None = node.meta.get(_REGION)
    return found


def bundle(graph: fx.Graph, root: dict[str, Any]) -> None:
    """Make each region's operators one operator, in place; their graphs are put into ``root``.

    Constants are left outside.
    """
    regions: dict[Recompute, list[fx.Node]] = {}
    for node in graph.nodes:
        region = region_of(node)
        if region and node.op == "call_function" and not node.meta.get("constant"):
            regions.setdefault(region, []).append(node)
    for region, nodes in regions.items():
        bundle_nodes(graph, root, nodes, f"recomputed_{region.number}", _always(region))


def bundle_nodes(
    graph: fx.Graph, root: dict[str, Any], nodes: Sequence[fx.Node], name: str,
    call_of: Callable[[Sequence[fx.Node]], Callable[..., Any]],
) -> None:  # fmt: skip
    """Make some operators one, in place; nothing between them but weights and constants may be another's.

    Args:
        graph: theirs.
        root: where their own graph is put.
        nodes: in execution order.
        name: of their own graph.
        call_of: gives what is called in their stead, as a ``Recompute`` is, for the weights that they read.
    """
    inside = set(nodes)
    sources = list(dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside))
    subgraphs = {node for node in sources if _is_subgraph(node, root)}
    held = [node for node in sources if (node.op == "get_attr" or _HELD in node.meta) and node not in subgraphs]
    values = [node for node in sources if node not in subgraphs and node not in held]
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    _clear_the_way(nodes)
    inner = fx.Graph()
    made = {node: inner.placeholder(node.name) for node in (*values, *held)}
    made |= {node: inner.get_attr(str(node.target)) for node in subgraphs}
    for node in nodes:
        made[node] = inner.node_copy(node, made.__getitem__)
        mark(made[node], None)
    inner.output(tuple(made[node] for node in outputs))
    root[name] = fx.GraphModule({str(node.target): root[str(node.target)] for node in subgraphs}, inner)
    with graph.inserting_after(nodes[-1]):
        body = graph.create_node("get_attr", name)
    with graph.inserting_after(body):
        call = graph.call_function(call_of(held), (body, tuple(held), *values))
    position = call
    for index, node in enumerate(outputs):
        with graph.inserting_after(position):
            position = graph.call_function(operator.getitem, (call, index))
        position.meta = {key: value for key, value in node.meta.items() if key != _REGION}
        node.replace_all_uses_with(position, delete_user_cb=lambda user: user not in inside)
    for node in reversed(nodes):
        graph.erase_node(node)


def _always(region: Recompute) -> Callable[[Sequence[fx.Node]], Recompute]:
    return lambda _: region


def _clear_the_way(nodes: Sequence[fx.Node]) -> None:
    """Move what lies among a region's nodes but is none of them (weights, constants) to before the first."""
    inside, node = set(nodes), nodes[0]
    while node is not nodes[-1]:
        following = node.next
        if node not in inside:
            nodes[0].prepend(node)
        node = following


def _is_subgraph(node: fx.Node, root: dict[str, Any]) -> bool:
    return node.op == "get_attr" and isinstance(root.get(str(node.target)), fx.GraphModule)
