"""A run of layers cut out of a captured graph as a module of its own, on a device of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import fx

__all__ = ["Segment", "build_segment", "constants_read", "retarget"]


class Segment(fx.GraphModule):
    """Some consecutive layers: tensors in, a tuple of tensors out.

    Parameters and buffers keep the names that they have in the user's model, and are the user's own objects unless
    others were given.
    """

    first: int
    last: int
    input_names: tuple[str, ...]
    """names of the Values it takes, in order; after them those of given constants and of lifted weights"""
    output_names: tuple[str, ...]
    weight_names: tuple[str, ...]
    device: torch.device


def build_segment(
    nodes: Sequence[fx.Node],
    *,
    layers: range,
    inputs: Sequence[str],
    outputs: Sequence[str],
    given: Sequence[str] = (),
    lifted: Sequence[str] = (),
    weight_name: Callable[[str], str],
    weight: Callable[[str], torch.Tensor],
    device: torch.device,
) -> Segment:
    """Copy ``nodes`` and the constants that they need into a module.

    Args:
        nodes: operators of the layers, in execution order.
        layers: which layers these are.
        inputs: names of the nodes that come in as tensors; those nobody reads are only passed on.
        outputs: names of the nodes to return.
        given: names of constants that come in as tensors after the inputs instead of being computed here.
        lifted: names of weights that come in as tensors too, because they live on another device.
        weight_name: gives a weight's own name for the attribute the graph reads it by.
        weight: gives the tensor to install for a weight's name.
        device: where the segment runs; every device baked into the trace is replaced by it.
    """
    graph = fx.Graph()
    env: dict[str, fx.Node] = {name: graph.placeholder(name) for name in (*inputs, *given)}
    lifted_nodes = {name: graph.placeholder("weight_" + name.replace(".", "_")) for name in lifted}
    root: dict[str, Any] = {}
    owner = nodes[0].graph.owning_module if nodes else None
    used: dict[str, None] = {}

    def place(node: fx.Node) -> fx.Node:
        if node.name in env:
            return env[node.name]
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(owner)
            if isinstance(value, fx.GraphModule):
                root[str(node.target)] = retarget(value, device)
                env[node.name] = graph.get_attr(str(node.target))
                return env[node.name]
            name = weight_name(str(node.target))
            if name in lifted_nodes:
                return lifted_nodes[name]
            used[name] = None
            if name not in root:
                root[name] = weight(name)
            env[node.name] = graph.create_node("get_attr", name)
            return env[node.name]
        for source in node.all_input_nodes:
            place(source)
        env[node.name] = graph.node_copy(node, lambda source: place(source))
        return env[node.name]

    for node in nodes:
        place(node)
    graph.output(tuple(env[name] for name in outputs))
    _retarget_nodes(graph, device)
    segment = Segment(root, graph, class_name="Segment")
    segment.first, segment.last = layers.start, layers.stop
    segment.input_names, segment.output_names = (*inputs, *given, *lifted), tuple(outputs)
    segment.weight_names, segment.device = tuple(used), device
    return segment


def constants_read(nodes: Sequence[fx.Node]) -> tuple[str, ...]:
    """Names of the constants (marked so by tracing) that these operators read directly."""
    sources = (source for node in nodes for source in node.all_input_nodes)
    return tuple(dict.fromkeys(source.name for source in sources if source.meta.get("constant")))


def retarget(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """A copy of a region's graph with every device in it replaced; regions inside regions too."""
    graph = copy.deepcopy(module.graph)
    root: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(module)
            root[str(node.target)] = retarget(value, device) if isinstance(value, fx.GraphModule) else value
    _retarget_nodes(graph, device)
    return fx.GraphModule(root, graph)


def _retarget_nodes(graph: fx.Graph, device: torch.device) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # it would insist on the device of the trace
            continue
        node.args = _replaced(node.args, device)
        node.kwargs = {key: _replaced(value, device) for key, value in node.kwargs.items()}
        if node.target is torch.ops.higher_order.wrap_with_autocast:
            node.args = (device.type, *node.args[1:])


def _replaced(argument: Any, device: torch.device) -> Any:
    if isinstance(argument, torch.device):
        return device
    if isinstance(argument, list | tuple) and not isinstance(argument, torch.Size):
        return type(argument)(_replaced(each, device) for each in argument)
    return argument
