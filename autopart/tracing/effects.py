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

__all__ = ["has_effect", "inseparable_spans", "is_random", "users_of_memory", "with_aliases", "written_inputs"]

_WRITES_STATISTICS = {
    # operator: (index of the flag, indices of the statistics)
    torch.ops.aten.batch_norm.default: (5, (3, 4)),
    torch.ops.aten.instance_norm.default: (5, (3, 4)),
    torch.ops.aten.native_batch_norm.default: (5, (3, 4)),
    torch.ops.aten.cudnn_batch_norm.default: (5, (3, 4)),
}


def has_effect(node: fx.Node) -> bool:
    """Whether a node must stay even if nobody uses its output."""
    return bool(written_inputs(node)) or is_random(node)


def is_random(node: fx.Node) -> bool:
    """Whether the operator draws from a random number generator (dropping or repeating it changes the stream)."""
    inner = _inner_graph(node)
    if inner is not None:
        return any(is_random(each) for each in inner.nodes)
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def written_inputs(node: fx.Node) -> tuple[fx.Node, ...]:
    """The inputs that the operator writes into."""
    if node.op != "call_function":
        return ()
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
    if _inner_graph(node) is not None:
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
    """Outer inputs that the region writes into: its placeholders line up with the last arguments."""
    placeholders = [each for each in inner.nodes if each.op == "placeholder"]
    outer = dict(zip(placeholders, node.args[len(node.args) - len(placeholders) :], strict=True))
    written: list[fx.Node] = []
    for each in inner.nodes:
        for target in written_inputs(each):
            written += [outer[root] for root in with_aliases([target]) if isinstance(outer.get(root), fx.Node)]
    return tuple(dict.fromkeys(written))


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
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    spans = []
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
