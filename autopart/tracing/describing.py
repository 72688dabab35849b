"""Put a captured model on paper: layers with their costs, weights, and the values that flow between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autopart.keying import fingerprint
from autopart.program import Program
from autopart.schema.graph import Graph, Layer, Note, Value, Weight
from autopart.segment import Segment, build_segment, constants_read
from autopart.tracing.costing import Cost, cost_segment
from autopart.tracing.grouping import Group
from autopart.tracing.signature import requires_grad, signature_of

__all__ = ["describe", "fingerprint"]

CPU = torch.device("cpu")
FAKE = FakeTensorMode(allow_non_fake_inputs=True)


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
        layers=_layers(captured.graph, groups, weights, costs),
        weights=weights.described,
        values=_described(values, captured.graph, costs),
        legal_cuts=tuple(range(1, len(groups))),
        notes=_notes(groups, costs),
    )
    return Program(
        module=model,
        graph=graph,
        captured=captured,
        layer_nodes=tuple(tuple(group.nodes) for group in groups),
        weight_names=tuple(weights.names.items()),
        sizes=tuple(captured.meta.get("sizes", ())),
        device=next((tensor.device for tensor in model.state_dict().values()), CPU),
    )


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
    """A layer's cost with the names that its positions stand for: values first, then constants."""

    cost: Cost
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    signature: str

    @property
    def saved_names(self) -> list[str]:
        """What it saves of all that other layers see."""
        saved = self.cost.saved
        return [*(self.inputs[index] for index in saved.inputs), *(self.outputs[index] for index in saved.outputs)]


def _costs(
    captured: fx.GraphModule, groups: Sequence[Group], values: Sequence[Value], weights: _Weights, *, training: bool
) -> list[_LayerCost]:
    """Cost every distinct layer once on fake tensors; layers with the same signature share it."""
    known: dict[str, Cost] = {}
    differentiable = {
        node.name for node in captured.graph.nodes if node.op == "placeholder" and requires_grad(node)
    }
    nodes = {node.name: node for node in captured.graph.nodes}
    computed: set[str] = set()
    costs = []
    for index, group in enumerate(groups):
        reads = constants_read(group.nodes)
        given = [name for name in reads if name in computed]  # a stage computes a constant only once
        own = [name for name in reads if name not in computed]
        computed.update(own)
        incoming = [value.name for value in values if value.producer < index and index in value.consumers]
        outgoing = [value.name for value in values if value.producer == index]
        inputs, outputs = (*incoming, *given), (*outgoing, *own)
        signature = signature_of(group.nodes, inputs, outputs, differentiable)
        if signature not in known:
            segment = _fake_segment(group.nodes, index, inputs, outputs, weights)
            known[signature] = _cost(segment, [nodes[name] for name in inputs], differentiable, training=training)
        cost = known[signature]
        flags = zip(outputs, cost.saved.differentiable, strict=True)
        differentiable |= {name for name, flag in flags if flag}
        costs.append(_LayerCost(cost, inputs, outputs, signature))
    return costs


def _fake_segment(
    nodes: Sequence[fx.Node], index: int, inputs: Sequence[str], outputs: Sequence[str], weights: _Weights
) -> Segment:
    def fake(name: str) -> torch.Tensor:
        real = weights.tensors[name]
        copy = torch.empty(real.shape, dtype=real.dtype, device=CPU)
        return nn.Parameter(copy, real.requires_grad) if isinstance(real, nn.Parameter) else copy

    with FAKE:
        return build_segment(
            nodes, layers=range(index, index + 1), inputs=inputs, outputs=outputs,
            weight_name=weights.names.__getitem__, weight=fake, device=CPU,
        )  # fmt: skip


def _cost(segment: Segment, sources: Sequence[fx.Node], differentiable: set[str], *, training: bool) -> Cost:
    with FAKE:
        inputs = [
            _fake_like(node.meta["val"], requires_grad=training and node.name in differentiable) for node in sources
        ]
        return cost_segment(segment, inputs, training=training)


def _fake_like(tensor: torch.Tensor, *, requires_grad: bool) -> torch.Tensor:
    """Strides too: they decide whether a reshape copies."""
    shape, strides = map(int, tensor.shape), map(int, tensor.stride())
    fake = torch.empty_strided(tuple(shape), tuple(strides), dtype=tensor.dtype, device=CPU)
    return fake.requires_grad_(requires_grad)


def _layers(
    graph: fx.Graph, groups: Sequence[Group], weights: _Weights, costs: Sequence[_LayerCost]
) -> tuple[Layer, ...]:
    """The layers; what several of them save is charged to the first, and views of one storage are one."""
    tensors = {node.name: node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)}
    # The trace's fake tensors share storages just as the real ones will.
    storages = {name: tensor.untyped_storage() for name, tensor in tensors.items()}
    charged = {storages[node.name]._cdata for node in graph.nodes if node.op == "get_attr" and node.name in storages}
    layers = []
    for group, each in zip(groups, costs, strict=True):
        saved = {storages[name]._cdata: int(storages[name].nbytes()) for name in each.saved_names}
        shared_bytes = sum(size for storage, size in saved.items() if storage not in charged)
        charged |= saved.keys()
        layers.append(
            Layer(
                name=group.path,
                weights=tuple(sorted(weights.index[name] for name in weights.used_by(group.nodes))),
                work=each.cost.work,
                saved_bytes=each.cost.saved.inside_bytes + shared_bytes,
                peak_bytes=each.cost.peak_bytes,
                signature=each.signature,
                backward_bytes=each.cost.backward.later_bytes,
                first_backward_bytes=each.cost.backward.first_bytes,
                reruns=each.cost.reruns,
            )
        )
    return tuple(layers)


def _described(values: Sequence[Value], graph: fx.Graph, costs: Sequence[_LayerCost]) -> tuple[Value, ...]:
    """The values with what the costs say of them: whether a gradient comes back, and which layer saves them first."""
    storages = {
        node.name: node.meta["val"].untyped_storage()._cdata
        for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
    }  # fmt: skip
    saved_by: dict[int, int] = {}
    for index, each in enumerate(costs):
        for name in each.saved_names:
            saved_by.setdefault(storages[name], index)
    return tuple(
        dataclasses.replace(
            value, differentiable=_differentiable(value, costs), saved_by=saved_by.get(storages[value.name])
        )
        for value in values
    )


def _notes(groups: Sequence[Group], costs: Sequence[_LayerCost]) -> tuple[Note, ...]:
    """That the memory of a backward is not known: one note for layers that are alike."""
    failed = {
        each.signature: (group.path, each.cost.backward.failure)
        for group, each in zip(groups, costs, strict=True) if each.cost.backward.failure
    }  # fmt: skip
    return tuple(
        Note(
            code="backward-memory",
            message=f"the backward of {path} could not be followed without values ({failure}), so the memory that it "
            "needs is taken to be as much as its forward saves",
            suggestion="leave room on that device, or measure it with autopart run",
        )
        for path, failure in failed.values()
    )


def _differentiable(value: Value, costs: Sequence[_LayerCost]) -> bool:
    if value.producer < 0:
        return value.differentiable
    made = costs[value.producer]
    return made.cost.saved.differentiable[made.outputs.index(value.name)]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
