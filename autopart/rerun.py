"""Layers run again in the backward, so that of each only what comes in is kept (a plan's recomputation).

The unit is the layer, which is what planning counts on: torch.utils.checkpoint (Chen et al. 2016, section 3) around
every layer of a stage.  The second run must give what the first one gave and change nothing: it draws the same random
numbers, and what a layer writes to (running statistics) it writes to copies of what was there before the first run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.utils import checkpoint

from autopart.customgrad import FunctionCall
from autopart.opaque import OpaqueCall
from autopart.recompute import bundle_nodes
from autopart.segment import Segment, layer_of

__all__ = ["LayerRerun", "Reruns", "may_run_again", "rerun_layers", "written_by"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reruns:
    """A stage whose layers are run again."""

    segment: Segment
    kept: tuple[int, ...]
    """layers that are run once and keep what they save: the user's own code, or what writes to values that come in"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRerun:
    """Calls a layer's graph so that it is called again in the backward."""

    written: tuple[int, ...]
    """positions of the buffers that the layer may write to, among the weights that it reads"""
    draws: bool
    """it may draw random numbers"""
    __name__ = "rerun"

    def __call__(
        self, body: fx.GraphModule, held: Sequence[torch.Tensor], *values: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The layer's outputs.

        Args:
            body: the layer's operators, as a graph of ``values`` followed by ``held``.
            held: the weights that it reads.
            values: what comes in, which is kept.
        """
        before: dict[int, torch.Tensor] | None = None

        def run(*given: torch.Tensor) -> Any:
            nonlocal before
            if before is None:
                before = {index: held[index].detach().clone() for index in self.written}
                return body(*given, *held)
            return body(*given, *(before[i].clone() if i in before else each for i, each in enumerate(held)))

        results: tuple[torch.Tensor, ...] = checkpoint.checkpoint(
            run, *values, use_reentrant=False, preserve_rng_state=self.draws
        )
        return results


def rerun_layers(segment: Segment) -> Reruns:
    """A segment that does the same, and runs its layers again in the backward."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(segment.body.graph, copies))
    root = {
        str(node.target): attrgetter(str(node.target))(segment.body) for node in graph.nodes if node.op == "get_attr"
    }
    kept = []
    for layer, nodes in _by_layer(graph).items():
        if not _may_run_again(nodes, root):
            kept.append(layer)
        else:
            draws = any(_may_draw(node, root) for node in nodes)
            bundle_nodes(graph, root, nodes, f"layer_{layer}", _call(set(_written(nodes, root)), draws))
    return Reruns(
        segment=segment.with_body(fx.GraphModule(root, graph, class_name="RerunSegment")), kept=tuple(kept)
    )


def may_run_again(layer: Segment) -> bool:
    """Whether a layer, a segment of its own, can be run again and gives what it gave, for all that is known."""
    root = {
        str(node.target): attrgetter(str(node.target))(layer.body)
        for node in layer.body.graph.nodes if node.op == "get_attr"
    }  # fmt: skip
    nodes = [node for node in layer.body.graph.nodes if node.op == "call_function" and not node.meta.get("constant")]
    return _may_run_again(nodes, root)


def written_by(body: fx.GraphModule) -> frozenset[fx.Node]:
    """The weights and inputs of a segment's graph that its operators may write to."""
    root = {str(node.target): attrgetter(str(node.target))(body) for node in body.graph.nodes if node.op == "get_attr"}
    return frozenset(_written([node for node in body.graph.nodes if node.op == "call_function"], root))


def _may_run_again(nodes: Sequence[fx.Node], root: dict[str, Any]) -> bool:
    if any(_calls_users_code(node, root) for node in nodes):
        return False
    return all(_is_buffer(each, root) for each in _written(nodes, root))


def _call(written: set[fx.Node], draws: bool) -> Callable[[Sequence[fx.Node]], LayerRerun]:
    def made(held: Sequence[fx.Node]) -> LayerRerun:
        return LayerRerun(written=tuple(index for index, each in enumerate(held) if each in written), draws=draws)

    return made


def _by_layer(graph: fx.Graph) -> dict[int, list[fx.Node]]:
    """The operators of each layer; one that is of none (a message between devices) belongs to the layer that it is for.

    Constants are of none, and stay outside.
    """
    found: dict[int, list[fx.Node]] = {}
    waiting: list[fx.Node] = []
    for node in graph.nodes:
        if node.op != "call_function" or node.meta.get("constant"):
            continue
        waiting.append(node)
        layer = layer_of(node)
        if layer is not None:
            found.setdefault(layer, []).extend(waiting)
            waiting = []
    return found


def _is_buffer(node: fx.Node, root: dict[str, Any]) -> bool:
    value = root[str(node.target)] if node.op == "get_attr" else None
    return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)


def _written(nodes: Sequence[fx.Node], root: dict[str, Any]) -> Iterator[fx.Node]:
    """What these operators write to and did not make."""
    inside = set(nodes)
    for node in nodes:
        for memory in _roots(_written_arguments(node, root)):
            if memory not in inside:
                yield memory


def _written_arguments(node: fx.Node, root: dict[str, Any]) -> list[Any]:
    """The arguments that an operator writes to; of one with a graph of its own that writes, all buffers."""
    if isinstance(node.target, FunctionCall):
        return [node.all_input_nodes[index] for index in node.target.writes]
    if not isinstance(node.target, torch._ops.OpOverload):
        inner = (each for body in _bodies(node, root) for each in body.graph.nodes)
        writes = any(_written_arguments(each, body_root) for each, body_root in _with_roots(inner))
        return [each for each in node.all_input_nodes if writes and _is_buffer(each, root)]
    if node.target is torch.ops.aten.detach_.default:  # marked as a write, but leaves the values alone
        return []
    named = zip(node.target._schema.arguments, node.args, strict=False)
    found = [given for argument, given in named if _is_written(argument)]
    return found + [node.kwargs.get(each.name) for each in node.target._schema.arguments if _is_written(each)]


def _with_roots(nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    for node in nodes:
        owner = node.graph.owning_module
        yield node, {str(each.target): attrgetter(str(each.target))(owner) for each in node.all_input_nodes
                     if each.op == "get_attr"}  # fmt: skip


def _is_written(argument: Any) -> bool:
    """Statistics are written to without the schema saying so."""
    marked = argument.alias_info is not None and argument.alias_info.is_write
    return marked or argument.name in ("running_mean", "running_var")


def _roots(arguments: Iterable[Any]) -> set[fx.Node]:
    """Whose memory these may be views of, themselves included."""
    found: set[fx.Node] = set()
    waiting: list[fx.Node] = []
    fx.node.map_arg(tuple(arguments), waiting.append)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes if _may_be_view(node) else []
    return found


def _may_be_view(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function"
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _bodies(node: fx.Node, root: dict[str, Any]) -> list[fx.GraphModule]:
    found = [root.get(str(each.target)) for each in node.all_input_nodes if each.op == "get_attr"]
    return [each for each in found if isinstance(each, fx.GraphModule)]


def _everything(node: fx.Node, root: dict[str, Any]) -> Iterator[fx.Node]:
    """An operator, and those of the graphs that it calls."""
    yield node
    for body in _bodies(node, root):
        for module in body.modules():
            if isinstance(module, fx.GraphModule):
                yield from module.graph.nodes


def _calls_users_code(node: fx.Node, root: dict[str, Any]) -> bool:
    return any(isinstance(each.target, OpaqueCall) for each in _everything(node, root))


def _may_draw(node: fx.Node, root: dict[str, Any]) -> bool:
    """Whether an operator may draw random numbers; of those that are no single operator of torch, it may."""

    def may(each: fx.Node) -> bool:
        if isinstance(each.target, torch._ops.OpOverload):
            return torch.Tag.nondeterministic_seeded in each.target.tags
        return each.op == "call_function" and each.target is not operator.getitem

    return any(may(each) for each in _everything(node, root))
