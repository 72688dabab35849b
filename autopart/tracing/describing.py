"""Put a captured model on paper: layers with their costs, weights, and the values that flow between them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autopart.program import Program
from autopart.schema.graph import Graph, Layer, Value, Weight
from autopart.segment import build_segment, constants_read
from autopart.tracing.costing import Cost, cost_segment
from autopart.tracing.grouping import Group

__all__ = ["describe", "fingerprint"]

CPU = torch.device("cpu")


def describe(
    model: nn.Module, captured: fx.GraphModule, groups: Sequence[Group], *, name: str, training: bool, batch_size: int
) -> Program:
    """The Program of a captured model whose nodes have been grouped into layers."""
    weights = _Weights(model, captured)
    values = _values(captured.graph, groups)
    costs = _costs(captured, groups, values, weights, training=training)
    graph = Graph(
        model=name,
        fingerprint=fingerprint(model),
        training=training,
        batch_size=batch_size,
        layers=_layers(groups, values, weights, costs),
        weights=weights.described,
        values=tuple(_differentiable(value, values, costs) for value in values),
        legal_cuts=tuple(range(1, len(groups))),
    )
    return Program(
        module=model,
        graph=graph,
        captured=captured,
        layer_nodes=tuple(tuple(group.nodes) for group in groups),
        weight_names=tuple(weights.names.items()),
        device=next((tensor.device for tensor in model.state_dict().values()), CPU),
    )


def fingerprint(model: nn.Module) -> str:
    """A hash of the architecture: every module's name and type, every weight's name, shape and data type."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__qualname__}\n".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}\n".encode())
    return digest.hexdigest()[:16]


class _Weights:
    """The tensors that a graph reads: their own names, and their descriptions."""

    def __init__(self, model: nn.Module, captured: fx.GraphModule) -> None:
        owned = [*model.named_parameters(), *model.named_buffers()]  # first names of tied ones
        name_of = {id(tensor): name for name, tensor in owned}
        parameters = {name for name, _ in model.named_parameters()}
        self.names: dict[str, str] = {}
        self.tensors: dict[str, torch.Tensor] = dict(owned)
        for node in captured.graph.nodes:
            if node.op != "get_attr":
                continue
            tensor = attrgetter(str(node.target))(captured)
            if isinstance(tensor, torch.Tensor):
                name = name_of.get(id(tensor), str(node.target))
                self.names[str(node.target)] = name
                self.tensors.setdefault(name, tensor)
        self.described = tuple(
            Weight(
                name=name,
                num_elements=tensor.numel(),
                bytes=tensor.numel() * tensor.element_size(),
                dtype=_dtype(tensor),
                is_buffer=name not in parameters,
                trainable=name in parameters and tensor.requires_grad,
            )
            for name, tensor in self.tensors.items()
        )
        self.index = {weight.name: index for index, weight in enumerate(self.described)}

    def used_by(self, nodes: Sequence[fx.Node]) -> tuple[str, ...]:
        """Names of the weights that these nodes read, through constants too."""
        found: dict[str, None] = {}
        inside, seen = set(nodes), set(nodes)
        open_nodes = [source for node in nodes for source in node.all_input_nodes]
        while open_nodes:
            node = open_nodes.pop(0)
            if node.op == "get_attr" and str(node.target) in self.names:
                found[self.names[str(node.target)]] = None
            elif node.op == "call_function" and node not in inside and node not in seen and node.meta.get("constant"):
                seen.add(node)
                open_nodes += node.all_input_nodes
        return tuple(found)


def _values(graph: fx.Graph, groups: Sequence[Group]) -> tuple[Value, ...]:
    """Tensors that some layer (or the caller) makes and a later layer (or the caller) reads."""
    layer_of = {node: index for index, group in enumerate(groups) for node in group.nodes}
    values = []
    for node in graph.nodes:
        tensor = node.meta.get("val")
        if not isinstance(tensor, torch.Tensor) or (node not in layer_of and node.op != "placeholder"):
            continue
        producer = layer_of.get(node, -1)
        consumers = sorted({index for user in node.users for index in _consumers(user, layer_of, len(groups))})
        later = tuple(index for index in consumers if index > producer)
        if later:
            values.append(
                Value(
                    name=node.name,
                    producer=producer,
                    consumers=later,
                    bytes=tensor.numel() * tensor.element_size(),
                    shape=tuple(int(size) for size in tensor.shape),
                    dtype=_dtype(tensor),
                    differentiable=False,
                )
            )
    return tuple(values)


def _consumers(user: fx.Node, layer_of: dict[fx.Node, int], num_layers: int) -> list[int]:
    if user.op == "output":
        return [num_layers]
    return [layer_of[user]] if user in layer_of else []


@dataclass(frozen=True, slots=True)
class _LayerCost:
    """A layer's cost with the names that its positions stand for."""

    cost: Cost
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    signature: str


def _costs(
    captured: fx.GraphModule, groups: Sequence[Group], values: Sequence[Value], weights: _Weights, *, training: bool
) -> list[_LayerCost]:
    """Cost every distinct layer once on fake tensors; layers with the same signature share it."""
    known: dict[str, Cost] = {}
    differentiable = {
        node.name for node in captured.graph.nodes if node.op == "placeholder" and _requires_grad(node)
    }
    nodes = {node.name: node for node in captured.graph.nodes}
    computed: set[str] = set()
    costs = []
    for index, group in enumerate(groups):
        incoming = [value for value in values if value.producer < index and index in value.consumers]
        outgoing = [value for value in values if value.producer == index]
        reads = constants_read(group.nodes)
        given = [nodes[name] for name in reads if name in computed]  # a stage computes a constant only once
        computed.update(reads)
        signature = _signature(group.nodes, incoming, outgoing, differentiable, len(reads) - len(given))
        if signature not in known:
            known[signature] = _cost(
                group, index, incoming, outgoing, given, weights, differentiable, training=training
            )
        cost = known[signature]
        differentiable |= {value.name for value, flag in zip(outgoing, cost.differentiable, strict=True) if flag}
        names = tuple(value.name for value in incoming), tuple(value.name for value in outgoing)
        costs.append(_LayerCost(cost, *names, signature))
    return costs


def _cost(
    group: Group, index: int, incoming: Sequence[Value], outgoing: Sequence[Value],
    given: Sequence[fx.Node], weights: _Weights, differentiable: set[str], *, training: bool,
) -> Cost:  # fmt: skip
    with FakeTensorMode(allow_non_fake_inputs=True):

        def fake(name: str) -> torch.Tensor:
            real = weights.tensors[name]
            copy = torch.empty(real.shape, dtype=real.dtype, device=CPU)
            return nn.Parameter(copy, real.requires_grad) if isinstance(real, nn.Parameter) else copy

        segment = build_segment(
            group.nodes, layers=range(index, index + 1), weight_name=weights.names.__getitem__, weight=fake, device=CPU,
            inputs=[value.name for value in incoming], outputs=[value.name for value in outgoing],
            given=[node.name for node in given],
        )  # fmt: skip
        constants = [
            torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype, device=CPU) for node in given
        ]
        inputs = [
            torch.empty(value.shape, dtype=getattr(torch, value.dtype), device=CPU).requires_grad_(
                training and value.name in differentiable
            )
            for value in incoming
        ]
        return cost_segment(segment, [*inputs, *constants], training=training)


def _layers(
    groups: Sequence[Group], values: Sequence[Value], weights: _Weights, costs: Sequence[_LayerCost]
) -> tuple[Layer, ...]:
    size = {value.name: value.bytes for value in values}
    charged: set[str] = set()
    layers = []
    for group, each in zip(groups, costs, strict=True):
        saved = {each.inputs[i] for i in each.cost.saved_inputs if i < len(each.inputs)} | {each.outputs[i] for i in each.cost.saved_outputs}
        layers.append(
            Layer(
                name=group.path,
                weights=tuple(sorted(weights.index[name] for name in weights.used_by(group.nodes))),
                work=each.cost.work,
                saved_bytes=each.cost.saved_inside_bytes + sum(size[name] for name in saved - charged),
                peak_bytes=each.cost.peak_bytes,
                signature=each.signature,
            )
        )
        charged |= saved
    return tuple(layers)


def _differentiable(value: Value, values: Sequence[Value], costs: Sequence[_LayerCost]) -> Value:
    if value.producer < 0:
        return value
    made = costs[value.producer]
    flag = made.cost.differentiable[made.outputs.index(value.name)]
    return Value(
        name=value.name, producer=value.producer, consumers=value.consumers, bytes=value.bytes, shape=value.shape,
        dtype=value.dtype, differentiable=flag,
    )  # fmt: skip


def _signature(
    nodes: Sequence[fx.Node], incoming: Sequence[Value], outgoing: Sequence[Value], differentiable: set[str],
    num_own_constants: int,
) -> str:  # fmt: skip
    """A hash of operators, constants and shapes with names taken out."""
    label: dict[fx.Node, str] = {node: f"n{index}" for index, node in enumerate(nodes)}
    order = {value.name: index for index, value in enumerate(incoming)}

    def spell(node: fx.Node) -> str:
        if node in label:
            return label[node]
        tensor = node.meta.get("val")
        shape = f"{tuple(tensor.shape)}{tensor.dtype}" if isinstance(tensor, torch.Tensor) else repr(tensor)
        grad = node.name in differentiable or _requires_grad(node)
        return f"in{order.get(node.name, '')}:{shape}:{grad}:{node.op}"

    digest = hashlib.sha256(f"{num_own_constants} ".encode())
    for node in nodes:
        args = fx.node.map_arg((node.args, dict(node.kwargs)), lambda source: _Spelled(spell(source)))
        digest.update(f"{node.target}{args}\n".encode())
    made = {value.name for value in outgoing}
    digest.update(" ".join(label[node] for node in nodes if node.name in made).encode())
    return digest.hexdigest()[:16]


class _Spelled(str):
    """A node's spelling, printed without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _requires_grad(node: fx.Node) -> bool:
    tensor: Any = node.meta.get("val")
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
