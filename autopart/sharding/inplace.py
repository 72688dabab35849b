"""Which values of a graph are written to in place."""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["writes", "written"]


def writes(node: fx.Node) -> bool:
    """Whether an operator writes to one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def written(graph: fx.Graph) -> set[fx.Node]:
    """What operators in place write to, with everything that it may be a view of, if somebody can tell."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if not writes(node) or _is_last_reader(node):
            continue
        for argument, given in zip(node.target._schema.arguments, node.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(given, fx.Node):
                found.update([node, *_aliases(given)])
    return found


def _is_last_reader(node: fx.Node) -> bool:
    """Whether an operator writes to what nothing but itself reads, such as an activation to a product's result.

    Nobody can then tell it from one that gives a new tensor.
    """
    value = node.args[0]
    if not isinstance(value, fx.Node) or value.op != "call_function" or len(value.users) > 1:
        return False
    return torch.Tag.pointwise in node.target.tags and len(_aliases(value)) == 1  # type: ignore[union-attr]


def _aliases(node: fx.Node) -> list[fx.Node]:
    """A value and those it may be a view of."""
    found = [node]
    while found[-1].op == "call_function" and found[-1].all_input_nodes:
        schema = getattr(found[-1].target, "_schema", None)
        if schema is not None and not any(argument.alias_info for argument in schema.arguments):
            break
        found.append(found[-1].all_input_nodes[0])
    return found
