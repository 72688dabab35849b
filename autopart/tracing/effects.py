"""What an operator does besides computing its output: writing into tensors, drawing random numbers, aliasing.

``aten.batch_norm`` and ``aten.instance_norm`` update running statistics without saying so in their schema; they
are listed here by hand.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from autopart.customgrad import FunctionCall
from autopart.opaque import OpaqueCall
from autopart.recompute import Recompute, region_of

__all__ = ["has_effect", "inseparable_spans", "is_random", "users_of_memory", "with_aliases", "written_inputs"]

_WRITES_STATISTICS = {
    # operator: (index of the flag, indices of the statistics)
    torch.ops.aten.batch_norm.default: (5, (3, 4)),
    torch.ops.aten.instance_norm.default: (5, (3, 4)),
    torch.ops.aten.native_batch_norm.default: (5, (3, 4)),
    torch.ops.aten.cudnn_batch_norm.default: (5, (3, 4)),
}
_CALLS_ONCE = {torch.ops.higher_order.wrap_with_autocast, torch.ops.higher_order.wrap_with_set_grad_enabled}
"""higher-order operators that run one inner graph, whose placeholders are their last arguments"""


def has_effect(node: fx.Node) -> bool:
    """Whether a node must stay even if nobody uses its output."""
    return bool(written_inputs(node)) or is_random(node)


def is_random(node: fx.Node) -> bool:
    """Whether the operator draws from a random number generator (dropping or repeating it changes the stream).

    What the user's own code does is not known.
    """
    if isinstance(node.target, FunctionCall | OpaqueCall):
        return True
    inner = _inner_graph(node)
    if inner is not None:
        return any(is_random(each) for each in inner.nodes)
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def written_inputs(node: fx.Node) -> tuple[fx.Node, ...]:
    """The inputs that the operator writes into."""
    if node.op != "call_function":
        return ()
    if isinstance(node.target, FunctionCall):
        tensors = list(node.all_input_nodes)
        return tuple(tensors[index] for index in node.target.writes)
    if isinstance(node.target, OpaqueCall):
        return tuple(_nodes([node.args[index] for index in sorted(node.target.written)]))
    inner = _inner_graph(node)
    if inner is not None:
        return _written_by_inner(node, inner)
    if not isinstance(node.target, torch._ops.OpOverload):
        return ()
    if node.target in _WRITES_STATISTICS:
        flag, statistics = _WRITES_STATISTICS[node.target]
        training = node.args[flag] if len(node.args) > flag else False
        return tuple(_nodes([node.args[index] for index in statistics])) if training else ()
    if node.target is torch.ops.aten.detach_.default:  # marked as a write, but leaves the values alone
        return ()
    return tuple(_nodes(_schema_inputs(node, writing=True)))


def aliased_inputs(node: fx.Node) -> tuple[fx.Node, ...]:
    """The inputs whose memory the output may share; rather too many than too few."""
    if node.op != "call_function":
        return ()
    if node.target is operator.getitem:
        return tuple(_nodes([node.args[0]]))
    if isinstance(node.target, OpaqueCall):
        return tuple(_nodes([node.args[index] for index in sorted(node.target.aliased)]))
    inner = _inner_graph(node)
    if inner is not None and node.target in _CALLS_ONCE:
        return _returned_by_inner(node, inner)
    if inner is not None or isinstance(node.target, FunctionCall):
        return tuple(node.all_input_nodes)
    if not isinstance(node.target, torch._ops.OpOverload):
        return ()
    if torch.Tag.maybe_aliasing_or_mutating in node.target.tags:
        return tuple(_nodes(node.args[:1]))
    if any(result.alias_info is not None for result in node.target._schema.returns):
        return tuple(_nodes(_schema_inputs(node, writing=False)))
    return ()


def _schema_inputs(node: fx.Node, *, writing: bool) -> list[Any]:
    """The arguments that the schema marks with an alias annotation, or of those the written ones."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found: list[Any] = []
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is None or (writing and not argument.alias_info.is_write):
            continue
        found.append(node.args[index] if index < len(node.args) else node.kwargs.get(argument.name))
    return found


def _inner_graph(node: fx.Node) -> fx.Graph | None:
    """The graph of a higher-order operator's region (autocast, no_grad, ...), if it has one."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    module = node.graph.owning_module
    for argument in node.args:
        if isinstance(argument, fx.Node) and argument.op == "get_attr" and module is not None:
            inner = getattr(module, str(argument.target), None)
            if isinstance(inner, fx.GraphModule):
                return inner.graph
    return None


def _written_by_inner(node: fx.Node, inner: fx.Graph) -> tuple[fx.Node, ...]:
    """Outer inputs that the region writes into."""
    return _outer(node, inner, (target for each in inner.nodes for target in written_inputs(each)))


def _returned_by_inner(node: fx.Node, inner: fx.Graph) -> tuple[fx.Node, ...]:
    """Outer inputs whose memory the region may return."""
    output = next(iter(reversed(inner.nodes)))
    return _outer(node, inner, output.all_input_nodes)


def _outer(node: fx.Node, inner: fx.Graph, found: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """The region's inputs that these inner nodes may be views of: its placeholders line up with the last arguments."""
    placeholders = [each for each in inner.nodes if each.op == "placeholder"]
    outer = dict(zip(placeholders, node.args[len(node.args) - len(placeholders) :], strict=True))
    roots = (outer.get(root) for root in with_aliases(found))
    return tuple(dict.fromkeys(root for root in roots if isinstance(root, fx.Node)))


def with_aliases(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes and all those whose memory they may be views of."""
    found: set[fx.Node] = set()
    open_nodes = list(nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node not in found:
            found.add(node)
            open_nodes += aliased_inputs(node)
    return found


def inseparable_spans(graph: fx.Graph, constants: set[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """Pairs (first, last) of operators that, with all between them, must stay on one device.

    * From where memory is made (or first used, for a buffer) to the last operator that writes into it: a copy on
      another device would miss the write.  A written buffer must also stay with its last reader.
    * From an operator whose output is not a tensor to its last user: only tensors cross.
    * A checkpointed region: it is computed again as a whole.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    spans = _regions(graph, constants)
    for node in graph.nodes:
        if node.op != "call_function" or node in constants:
            continue
        for base in with_aliases(written_inputs(node)):
            if base.op == "get_attr":
                users = [user for user in users_of_memory(base) if user.op == "call_function"]
                spans.append((min(users, key=order.__getitem__), max(users, key=order.__getitem__)))
            else:
                spans.append((base, node))
        if not isinstance(node.meta.get("val"), torch.Tensor):
            readers = [user for user in node.users if user.op == "call_function"]
            spans += [(node, max(readers, key=order.__getitem__))] if readers else []
    return [(first, last) for first, last in spans if last not in constants]


def _regions(graph: fx.Graph, constants: set[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """First and last operator of every checkpointed region."""
    bounds: dict[Recompute, tuple[fx.Node, fx.Node]] = {}
    for node in graph.nodes:
        region = region_of(node)
        if region is not None and node not in constants:
            bounds[region] = (bounds.get(region, (node, node))[0], node)
    return list(bounds.values())


def users_of_memory(base: fx.Node) -> set[fx.Node]:
    """The users of a weight, and the users of views of it."""
    found: set[fx.Node] = set()
    open_nodes = [base]
    while open_nodes:
        for user in open_nodes.pop().users:
            if user not in found:
                found.add(user)
                if base in with_aliases([user]):
                    open_nodes.append(user)
    return found


def _nodes(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.node.map_arg(tuple(arguments), note)
    return found
