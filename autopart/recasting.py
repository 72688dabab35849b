"""Segments that compute in another type than the one they were traced in (a plan's ``Stage.dtype``).

Whatever names a replaced type in the graph names the other one; weights and values are cast on their way in and values
on their way out, by operators that autograd knows: gradients arrive in the weights' own type.

Float16 has not the range of bfloat16.  What stands for infinity (the least number of a type, in masks) becomes
float16's largest or least number: in numbers that the code names, in what comes in, and where float32 that no parameter
had a part in is cast.  What the model computes may overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from autopart.customgrad import FunctionCall
from autopart.errors import UsageError
from autopart.opaque import OpaqueCall
from autopart.rerun import written_by
from autopart.segment import Segment
from autopart.stagedtypes import REPLACED

__all__ = ["in_type", "recast"]

Types = frozenset[torch.dtype]
Tensors = tuple[torch.Tensor, ...]


def in_type(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """The tensor for a stage of this type; itself if it is of no replaced type.

    Finite values stay finite: the least value of bfloat16, which masks are made of, is none of float16.
    """
    if not dtype or tensor.dtype not in _replaced(dtype):
        return tensor
    wanted: torch.dtype = getattr(torch, dtype)
    limits, made = torch.finfo(wanted), tensor.to(wanted)
    if limits.max >= torch.finfo(tensor.dtype).max:
        return made
    made.clamp_(limits.min, limits.max)  # in place, so that no more than the copy is held
    return made.masked_fill_(tensor == math.inf, math.inf).masked_fill_(tensor == -math.inf, -math.inf)


def recast(
    segment: Segment, dtype: str, input_dtypes: Mapping[str, str], output_dtypes: Sequence[str]
) -> Segment:
    """This segment, from now on computing in ``dtype``, with outputs of the types given.

    Args:
        segment: as traced.
        dtype: of ``stagedtypes.REPLACED``.
        input_dtypes: of what comes in by name, where they are known: those are cast in the graph, so that a copy is
            gone after its last use; others before it runs.
        output_dtypes: of what it gives.

    Raises:
        UsageError: it runs the user's own code, reads the bits of a replaced type, or is under autocast.
    """
    if segment.autocast is not None:
        raise UsageError(f"a stage in {dtype} cannot be under autocast too: train with --precision full, or plan with "
                         "--stage-dtype keep")
    for module in segment.body.modules():
        if isinstance(module, fx.GraphModule):
            _rewrite(module, getattr(torch, dtype), _replaced(dtype))
    written = written_by(segment.body)
    names, inputs = segment.input_names, [node for node in segment.body.graph.nodes if node.op == "placeholder"]
    relayed = tuple(names.index(name) if name in names else None for name in segment.output_names)
    known = {index for index, name in enumerate(names) if input_dtypes.get(name) in REPLACED[dtype]}
    written_weights = frozenset(str(node.target) for node in written if node.op == "get_attr")
    written_inputs = tuple(index for index, node in enumerate(inputs) if node in written)
    casts = _cast_in_graph(segment.body, {index: inputs[index] for index in sorted(known)}, dtype)
    idle = frozenset(index for index, node in enumerate(inputs) if all(user.op == "output" for user in node.users))
    _return_too(segment.body, [casts.get(index, inputs[index]) for index in written_inputs])
    return segment.run_by(_Recast(
        dtype=dtype, returned=tuple(getattr(torch, name) for name in output_dtypes), relayed=relayed,
        written_weights=written_weights, written_inputs=written_inputs, left_alone=idle | casts.keys(),
    ))  # fmt: skip


def _cast_in_graph(body: fx.GraphModule, inputs: Mapping[int, fx.Node], dtype: str) -> dict[int, fx.Node]:
    """Casts of these placeholders, by their number, for all that reads them but the output; as ``in_type`` does it."""
    graph, wanted, casts = body.graph, getattr(torch, dtype), dict[int, fx.Node]()
    first = next(node for node in graph.nodes if node.op != "placeholder")
    limits = torch.finfo(wanted)
    for index, source in inputs.items():
        users = [user for user in source.users if user.op != "output"]
        if not users:
            continue
        with graph.inserting_before(first):
            made = graph.call_function(torch.ops.aten.to.dtype, (source, wanted))
            if wanted is torch.float16:
                made = graph.call_function(torch.ops.aten.clamp_.default, (made, limits.min, limits.max))
                for number in (math.inf, -math.inf):
                    endless = graph.call_function(torch.ops.aten.eq.Scalar, (source, number))
                    made = graph.call_function(torch.ops.aten.masked_fill_.Scalar, (made, endless, number))
        for user in users:
            user.replace_input_with(source, made)
        casts[index] = made
    body.recompile()
    return casts


def _return_too(body: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
    """Has a graph return these after its results."""
    if nodes:
        output = next(iter(reversed(body.graph.nodes)))
        output.args = ((*output.args[0], *nodes),)
        body.recompile()


class _Recast:
    """Runs a segment's graph in another type.

    Copies of parameters are kept from ``begin_step`` on, until the next: all micro-batches of a step share them.
    """

    def __init__(
        self, *, dtype: str, returned: Sequence[torch.dtype], relayed: Sequence[int | None],
        written_weights: frozenset[str], written_inputs: Sequence[int], left_alone: frozenset[int],
    ) -> None:  # fmt: skip
        self._dtype, self._returned, self._relayed, self._left_alone = dtype, returned, relayed, left_alone
        self._written_weights, self._written_inputs = written_weights, written_inputs
        self._copies: dict[str, torch.Tensor] | None = None

    def __call__(self, body: fx.GraphModule, values: Tensors) -> Tensors:
        own: dict[str, torch.Tensor] = {**dict(body.named_parameters()), **dict(body.named_buffers())}
        weights = {name: self._copy(name, weight) for name, weight in own.items()}
        inside = tuple(
            value if index in self._left_alone else in_type(value, self._dtype) for index, value in enumerate(values)
        )
        results = torch.func.functional_call(body, weights, inside)
        number = len(self._returned)
        _write_back((own[name], weights[name]) for name in self._written_weights if name in own)
        _write_back((values[index], copy) for index, copy in zip(self._written_inputs, results[number:], strict=True))
        return tuple(
            result.to(dtype) if index is None else values[index]
            for result, dtype, index in zip(results[:number], self._returned, self._relayed, strict=True)
        )

    def begin_step(self) -> None:
        """Forgets the copies of parameters, which may have been updated."""
        self._copies = {}

    def _copy(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        is_kept = self._copies is not None and isinstance(weight, nn.Parameter) and torch.is_grad_enabled()
        if not is_kept or self._copies is None:
            return in_type(weight, self._dtype)
        if name not in self._copies:
            self._copies[name] = in_type(weight, self._dtype)
        return self._copies[name]


def _replaced(dtype: str) -> Types:
    return frozenset(getattr(torch, name) for name in REPLACED[dtype])


def _write_back(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """What operators wrote to copies (running statistics, caches) goes to the tensors themselves."""
    for own, copy in pairs:
        if copy is not own:
            own.copy_(copy.detach() if not own.requires_grad else copy)


def _rewrite(module: fx.GraphModule, wanted: torch.dtype, replaced: Types) -> None:
    """Replace types by ``wanted`` wherever a graph names them, and numbers that it cannot hold by its largest."""
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, OpaqueCall | FunctionCall) or _reads_bits(node, replaced):
            raise UsageError(
                f"{node.name} is the model's own code or reads the bits of a number, so its stage cannot compute in "
                f"{str(wanted).removeprefix('torch.')}; plan with --stage-dtype keep"
            )
        if node.target is torch.ops.higher_order.wrap_with_autocast and wanted is torch.float32:
            if node.args[1] in replaced:
                node.args = (*node.args[:2], False, *node.args[3:])  # autocast has no float32
            continue
        limit = torch.finfo(wanted).max if _is_of(node, replaced) else math.inf
        node.args = _mapped(node.args, wanted, replaced, limit)
        node.kwargs = _mapped(node.kwargs, wanted, replaced, limit)
    if wanted is torch.float16:
        _keep_finite(module, replaced, torch.finfo(wanted).max)
    module.recompile()


WIDE = (torch.float32, torch.float64)
CASTS = frozenset({"aten::to", "aten::_to_copy", "aten::type_as", "aten::copy", "aten::copy_"})
"""operators that make a wider type's tensor one of theirs; others do so with tensors of no dimension"""


def _keep_finite(module: fx.GraphModule, replaced: Types, limit: float) -> None:
    """Finite numbers of wider types stay finite in casts to a replaced one, but for those computed with parameters.

    Those are what the model computes, which is as large in its own type, and three more passes over them are slow.
    """
    learned: set[fx.Node] = set()
    for node in list(module.graph.nodes):
        is_weight = node.op == "get_attr" and isinstance(attrgetter(str(node.target))(module), nn.Parameter)
        if is_weight or learned.intersection(node.all_input_nodes):
            learned.add(node)
        for source in [each for each in _cast_here(node, module, replaced) if each not in learned]:
            with module.graph.inserting_before(node):
                node.replace_input_with(source, _within(module.graph, source, limit))


def _cast_here(node: fx.Node, module: fx.GraphModule, replaced: Types) -> Iterator[fx.Node]:
    """Of what an operator reads, the tensors that it makes of a replaced type, or may."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    if getattr(node.meta.get("val"), "dtype", None) not in replaced:
        return
    casts = node.target._schema.name in CASTS
    for source in node.all_input_nodes:
        value = attrgetter(str(source.target))(module) if source.op == "get_attr" else source.meta.get("val")
        is_wide = isinstance(value, torch.Tensor) and value.dtype in WIDE and (casts or value.dim() == 0)
        is_written = node.target._schema.is_mutable and source is node.args[0]
        if not is_written and (is_wide or (value is None and casts)):
            yield source


def _within(graph: fx.Graph, source: fx.Node, limit: float) -> fx.Node:
    """What is finite, at most this large; infinity stays infinite."""
    endless = graph.call_function(torch.ops.aten.isinf.default, (source,))
    limited = graph.call_function(torch.ops.aten.clamp.default, (source, -limit, limit))
    return graph.call_function(torch.ops.aten.where.self, (endless, source, limited))


def _mapped(arguments: Any, wanted: torch.dtype, replaced: Types, limit: float) -> Any:
    def one(leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype) and leaf in replaced:
            return wanted
        if isinstance(leaf, float) and limit < abs(leaf) < math.inf:
            return math.copysign(limit, leaf)
        return leaf

    return fx.node.map_aggregate(arguments, one)


def _is_of(node: fx.Node, replaced: Types) -> bool:
    """Whether an operator makes or takes a tensor of a replaced type, for all that is known."""
    values = [each.meta.get("val") for each in (node, *node.all_input_nodes)]
    return any(value is None or getattr(value, "dtype", None) in replaced for value in values)


def _reads_bits(node: fx.Node, replaced: Types) -> bool:
    return node.target is torch.ops.aten.view.dtype and _is_of(node, replaced)
