"""What makes two layers the same work: their operators, with all names taken out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import fx

from autopart.recompute import region_of

__all__ = ["inner_operators", "requires_grad", "signature_of", "spelled"]


def signature_of(
    nodes: Sequence[fx.Node], inputs: Sequence[str], outputs: Sequence[str], differentiable: set[str]
) -> str:
    """A hash of a layer's operators, their arguments and the shapes that come in; equal for repeated blocks.

    Args:
        nodes: the layer's operators, in execution order.
        inputs: names of the tensors that come in from other layers.
        outputs: names of the tensors that other layers need.
        differentiable: names of the tensors to which a gradient comes back.
    """
    order = {name: index for index, name in enumerate(inputs)}

    def spell(node: fx.Node) -> str:
        tensor = node.meta.get("val")
        shape = repr(tensor)
        if isinstance(tensor, torch.Tensor):
            shape = f"{tuple(tensor.shape)}{tuple(tensor.stride())}{tensor.dtype}"
        grad = node.name in differentiable or requires_grad(node)
        return f"in{order.get(node.name, '')}:{shape}:{grad}:{node.op}{inner_operators(node)}"

    digest = hashlib.sha256(spelled(nodes, spell).encode())
    made = set(outputs)
    digest.update(" ".join(str(index) for index, node in enumerate(nodes) if node.name in made).encode())
    digest.update(str(len(made)).encode())  # with the constants that it computes itself
    regions = list(dict.fromkeys(region_of(node) for node in nodes))
    digest.update(" ".join(str(regions.index(region_of(node))) for node in nodes).encode() if any(regions) else b"")
    return digest.hexdigest()[:16]


def spelled(nodes: Sequence[fx.Node], outer: Callable[[fx.Node], str]) -> str:
    """Operators with their arguments, a line each; nodes among these by number, others as ``outer`` spells them."""
    label: dict[fx.Node, str] = {node: f"n{index}" for index, node in enumerate(nodes)}

    def spell(node: fx.Node) -> Any:
        return _Spelled(label[node] if node in label else outer(node))

    lines = (f"{node.target}{fx.node.map_arg((node.args, dict(node.kwargs)), spell)}" for node in nodes)
    return "\n".join(lines)


def inner_operators(node: fx.Node) -> str:
    """The operators of a region (autocast, no_grad) that a node stands for."""
    if node.op != "get_attr":
        return ""
    found = attrgetter(str(node.target))(node.graph.owning_module)
    if not isinstance(found, fx.GraphModule):
        return ""
    nodes = [each for each in found.graph.nodes if each.op != "placeholder"]
    places = {each: index for index, each in enumerate(found.graph.nodes)}
    return f"({spelled(nodes, lambda each: f'arg{places[each]}' + inner_operators(each))})"


class _Spelled(str):
    """A node's spelling, printed without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def requires_grad(node: fx.Node) -> bool:
    """Whether the traced tensor of a node takes part in differentiation."""
    tensor: Any = node.meta.get("val")
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad
