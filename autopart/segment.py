"""A run of layers cut out of a captured graph as a module of its own, on a device of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import fx, nn

from autopart.customgrad import FunctionCall
from autopart.opaque import OpaqueCall
from autopart.recompute import bundle

__all__ = ["Segment", "build_segment", "constants_read", "layer_of", "retarget"]

_LAYER = "layer"


class Runner(Protocol):
    """Runs a segment's graph in its own way."""

    def __call__(self, body: fx.GraphModule, values: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The graph's results for these values."""

    def begin_step(self) -> None:
        """Weights may have changed."""


class Segment(nn.Module):
    """Some consecutive layers: tensors in, a tuple of tensors out.

    Parameters and buffers keep the names that they have in the user's model, and are the user's own objects unless
    others were given.  A user's submodule may be called ``first`` or ``device`` too: the graph module ``body`` has the
    weights as attributes, the segment only shares its registers of them.
    """

    body: fx.GraphModule
    first: int
    last: int
    input_names: tuple[str, ...]
    """names of the Values it takes, in order; after them those of given constants and of lifted weights"""
    output_names: tuple[str, ...]
    device: torch.device
    autocast: torch.dtype | None
    """what it computes in where torch.autocast would; None: in the types of the trace"""
    output_dtypes: tuple[torch.dtype, ...]
    """under autocast, what its outputs are cast to"""
    runner: Runner | None
    """what runs it in another type than that of the trace; None: as it is"""

    def __init__(
        self, body: fx.GraphModule, layers: range, inputs: Sequence[str], outputs: Sequence[str], device: torch.device
    ) -> None:
        super().__init__()
        for register in ("_parameters", "_buffers", "_modules"):
            self.__dict__[register] = body.__dict__[register]
        self.__dict__.update(
            body=body, first=layers.start, last=layers.stop, input_names=tuple(inputs), output_names=tuple(outputs),
            device=device, autocast=None, output_dtypes=(), runner=None,
        )  # fmt: skip

    def under(self, autocast: torch.dtype, output_dtypes: Sequence[str]) -> Segment:
        """This segment, from now on under autocast, its outputs cast to these types."""
        self.__dict__.update(autocast=autocast, output_dtypes=tuple(getattr(torch, name) for name in output_dtypes))
        return self

    def run_by(self, runner: Runner) -> Segment:
        """This segment, from now on run in another way, whatever its body."""
        self.__dict__["runner"] = runner
        return self

    def begin_step(self) -> None:
        """Tells that weights may have changed since the step before."""
        if self.runner is not None:
            self.runner.begin_step()

    def with_body(self, body: fx.GraphModule) -> Segment:
        """The same layers, computed in another way."""
        made = Segment(body, range(self.first, self.last), self.input_names, self.output_names, self.device)
        made.__dict__.update(autocast=self.autocast, output_dtypes=self.output_dtypes, runner=self.runner)
        return made

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values named by ``output_names``, from those named by ``input_names``."""
        if self.runner is not None:
            return self.runner(self.body, values)
        if self.autocast is None:
            results: tuple[torch.Tensor, ...] = self.body(*values)
            return results
        with torch.autocast(self.device.type, self.autocast):
            results = self.body(*values)
        return tuple(value.to(dtype) for value, dtype in zip(results, self.output_dtypes, strict=True))


def build_segment(
    nodes: Sequence[fx.Node],
    *,
    layers: range,
    layer_numbers: Mapping[str, int] | None = None,
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
        layer_numbers: of which one each node is, by name, for ``layer_of``.
        inputs: names of the nodes that come in as tensors; those nobody reads are only passed on.
        outputs: names of the nodes to return.
        given: names of constants that come in as tensors after the inputs instead of being computed here.
        lifted: names of weights that come in as tensors too, because they live on another device.
        weight_name: gives a weight's own name for the attribute the graph reads it by.
        weight: gives the tensor to install for a weight's name.
        device: where the segment runs; every device baked into the trace is replaced by it.
    """
    builder = _Builder(nodes, (*inputs, *given), lifted, weight_name, weight, device)
    builder.layer_numbers = layer_numbers or {}
    for node in nodes:
        builder.place(node)
    builder.graph.output(tuple(builder.made[name] for name in outputs))
    _retarget_nodes(builder.graph, device)
    bundle(builder.graph, builder.root)
    body = fx.GraphModule(builder.root, builder.graph, class_name="Segment")
    return Segment(body, layers, (*inputs, *given, *lifted), outputs, device)


class _Builder:
    """Copies nodes into a graph of their own, with all that they need and that does not come in."""

    def __init__(
        self, nodes: Sequence[fx.Node], inputs: Sequence[str], lifted: Sequence[str],
        weight_name: Callable[[str], str], weight: Callable[[str], torch.Tensor], device: torch.device,
    ) -> None:  # fmt: skip
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.made = {name: self.graph.placeholder(name) for name in inputs}
        self._lifted = {name: self.graph.placeholder("weight_" + name.replace(".", "_")) for name in lifted}
        self.layer_numbers: Mapping[str, int] = {}
        self._owner = nodes[0].graph.owning_module if nodes else None
        self._weight_name, self._weight, self._device = weight_name, weight, device

    def place(self, node: fx.Node) -> fx.Node:
        """The node's copy, made now, its sources first, if there is none."""
        if node.name not in self.made:
            self.made[node.name] = self._attribute(str(node.target)) if node.op == "get_attr" else self._operator(node)
        return self.made[node.name]

    def _operator(self, node: fx.Node) -> fx.Node:
        assert node.op == "call_function", f"{node.name} is no operator, so it must come in"
        for source in node.all_input_nodes:
            self.place(source)
        made = self.graph.node_copy(node, self.place)
        if node.name in self.layer_numbers:
            made.meta[_LAYER] = self.layer_numbers[node.name]
        return made

    def _attribute(self, target: str) -> fx.Node:
        value = attrgetter(target)(self._owner)
        if isinstance(value, fx.GraphModule):
            self.root[target] = retarget(value, self._device)
            return self.graph.get_attr(target)
        name = self._weight_name(target)
        if name in self._lifted:
            return self._lifted[name]
        if name not in self.root:
            self.root[name] = self._weight(name)
        return self.graph.create_node("get_attr", name)


def layer_of(node: fx.Node) -> int | None:
    """The layer that an operator of a segment belongs to, if it is one of the model's; kept with its other marks."""
    found: int | None = node.meta.get(_LAYER)
    return found


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
            root[str(node.target)] = retarget(value, device) if isinstance(value, fx.GraphModule) else value.to(device)
    _retarget_nodes(graph, device)
    bundle(graph, root)
    return fx.GraphModule(root, graph)


def _retarget_nodes(graph: fx.Graph, device: torch.device) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # it would insist on the device of the trace
            continue
        if isinstance(node.target, FunctionCall | OpaqueCall):
            node.target = node.target.on(device)
        node.args = _replaced(node.args, device)
        node.kwargs = {key: _replaced(value, device) for key, value in node.kwargs.items()}
        if node.target is torch.ops.higher_order.wrap_with_autocast and device.type != "meta":  # it has no autocast
            node.args = (device.type, *node.args[1:])


def _replaced(argument: Any, device: torch.device) -> Any:
    if isinstance(argument, torch.device):
        return device
    if isinstance(argument, list | tuple) and not isinstance(argument, torch.Size):
        return type(argument)(_replaced(each, device) for each in argument)
    return argument
