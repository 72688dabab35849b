"""Complete a graph in which only some of many equal blocks were traced (see ``repeats``).

The body of a traced block lies between two marks.  Its copy, with the inputs, weights and module names of another
block, is what torch.export would have recorded there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from autopart.customgrad import FunctionCall
from autopart.opaque import OpaqueCall
from autopart.recompute import mark, region_of
from autopart.tracing.effects import with_aliases, written_inputs
from autopart.tracing.likeness import Block, is_plain
from autopart.tracing.signature import inner_operators, spelled

__all__ = ["BOUNDARY", "Call", "NotRepeatedError", "number_nodes", "unroll"]

torch.library.define("autopart::boundary", "(Tensor[] tensors, int call, bool leaving) -> ()")
torch.library.impl("autopart::boundary", "CompositeExplicitAutograd", lambda tensors, call, leaving: None)
torch.library.register_fake("autopart::boundary", lambda tensors, call, leaving: None)
BOUNDARY = torch.ops.autopart.boundary.default
"""marks where in the graph a block is entered (with its inputs) and left (with its outputs)"""
fx.node.has_side_effect(BOUNDARY)


class NotRepeatedError(Exception):
    """Why a traced body may not stand for the other blocks."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a block; ``BOUNDARY`` marks it by its number in the order in which blocks were entered."""

    block: Block
    pattern: Call | None = None
    """the call whose body stands for this one's, if this one was not traced"""
    check: Call | None = None
    """a second call that was traced, to be compared with this one"""
    seen: frozenset[int] = frozenset()
    """positions of the block's varying integers that the body depends on"""
    result: Any = None
    """what is returned, described: its tensors are the inputs and, after them, the fresh ones"""
    fresh: tuple[torch.Tensor, ...] = ()
    """the returned tensors that are no inputs"""
    usable: bool = False
    """whether others may be copied from it"""


def unroll(captured: fx.GraphModule, calls: Sequence[Call]) -> None:
    """Put a copy of a traced body wherever a block was left out, and take the marks away.

    Raises:
        NotRepeatedError: the traced bodies differ, or do more than compute outputs from inputs and weights.
    """
    graph = captured.graph
    marks = [node for node in graph.nodes if node.target is BOUNDARY]
    entries = {node.args[1]: node for node in marks if not node.args[2]}
    exits = {node.args[1]: node for node in marks if node.args[2]}  # inner blocks before those around them
    if not set(range(len(calls))) == set(entries) == set(exits):
        raise NotRepeatedError("a block runs in a region of its own, such as no_grad or autocast")
    bodies = {calls[number]: _Body(entries[number], node, calls[number].block.path) for number, node in exits.items()}
    weights = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}
    compared: set[Call] = set()
    for call, body in bodies.items():
        if call.pattern is None:
            continue
        if call.pattern not in compared:
            assert call.pattern.check is not None
            _compare(bodies[call.pattern], bodies[call.pattern.check])
            compared.add(call.pattern)
        _Copy(bodies[call.pattern], body, weights).make()
    for node in marks:
        graph.erase_node(node)


def number_nodes(graph: fx.Graph) -> None:
    """Name the operators by kind and order, whatever was dropped or copied between: ``linear``, ``linear_1``, ..."""
    names = fx.graph._Namespace()
    nodes = sorted(graph.nodes, key=lambda node: node.op == "call_function")  # the names of inputs and weights stay
    for node in nodes:
        packet = node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target
        kind = graph._target_to_str(packet) if node.op == "call_function" else node.name
        node.name = names.create_name(kind, node)
    graph._graph_namespace = names


@dataclass(frozen=True, slots=True)
class _Body:
    """A call as it lies in the graph."""

    enter: fx.Node
    leave: fx.Node
    path: str

    @property
    def inputs(self) -> list[fx.Node]:
        return list(self.enter.args[0])  # type: ignore[arg-type]

    @property
    def outputs(self) -> list[fx.Node]:
        return list(self.leave.args[0])  # type: ignore[arg-type]

    @property
    def nodes(self) -> list[fx.Node]:
        """The operators between the marks; the marks of blocks inside are left out."""
        span = itertools.takewhile(lambda node: node is not self.leave, _after(self.enter))
        return [node for node in span if node.target is not BOUNDARY]

    @property
    def stack(self) -> dict[str, tuple[str, str]]:
        """The module calls around, the block's own last."""
        return dict(self.enter.meta["nn_module_stack"])

    def renamed(self, name: str, path: str) -> str:
        """A name below the block as it would be below another one; other names stay."""
        return path + name.removeprefix(self.path) if name.startswith(self.path + ".") else name

    def moved_stack(self, node: fx.Node, to: _Body) -> dict[str, tuple[str, str]]:
        """The module calls around a node of this body, for its copy in another."""
        inner = list((node.meta.get("nn_module_stack") or self.stack).items())[len(self.stack) :]
        moved = {key.replace(self.path, to.path): (self.renamed(path, to.path), kind) for key, (path, kind) in inner}
        return {**to.stack, **moved}


def _after(node: fx.Node) -> Iterator[fx.Node]:
    while node.op != "output":
        node = node.next
        yield node


def _compare(one: _Body, other: _Body) -> None:
    for body in (one, other):
        _demand_closed(body)
    if _spelling(one) != _spelling(other):
        raise NotRepeatedError(f"{one.path} and {other.path} look alike but do other things")


def _demand_closed(body: _Body) -> None:
    """Nothing goes in but inputs and weights, nothing comes out but outputs, nothing outside is written."""
    nodes, inputs, outputs = set(body.nodes), set(body.inputs), set(body.outputs)
    sources = {source for node in nodes for source in node.all_input_nodes if source.op != "get_attr"}
    users = {user for node in nodes - outputs for user in node.users if user.target is not BOUNDARY}
    written = with_aliases(each for node in nodes for each in written_inputs(node))
    if list(body.stack.values())[-1][0] != body.path or not outputs <= nodes:
        raise NotRepeatedError(f"{body.path} is not where its name says")
    if not sources <= nodes | inputs or not users <= nodes:
        raise NotRepeatedError(f"{body.path} takes or gives tensors that are neither arguments nor results")
    if not written <= nodes:
        raise NotRepeatedError(f"{body.path} writes into its inputs or buffers")
    if not all(_is_portable(node, body) for node in nodes):
        raise NotRepeatedError(f"{body.path} runs code of its own or checkpoints a part of itself")


def _is_portable(node: fx.Node, body: _Body) -> bool:
    """Whether an operator means the same in another block."""
    if isinstance(node.target, FunctionCall) and not all(map(is_plain, node.target.arguments)):
        return False
    return not isinstance(node.target, OpaqueCall) and region_of(node) in (None, region_of(body.enter))


def _spelling(body: _Body) -> tuple[Any, ...]:
    """All that is recorded of a body, with the block's own name taken out."""
    place = {node: index for index, node in enumerate(body.nodes)}
    inputs = {node: index for index, node in enumerate(body.inputs)}

    def outer(node: fx.Node) -> str:
        if node in inputs:
            return f"input{inputs[node]}"
        return inner_operators(node) or body.renamed(str(node.target), "")

    sizes = [pytree.tree_map_only(torch.Tensor, _sizes, node.meta.get("val")) for node in place]
    stacks = [list(body.moved_stack(node, body).values())[len(body.stack) :] for node in place]
    paths = [[(body.renamed(path, ""), kind) for path, kind in stack] for stack in stacks]
    recomputed = [region_of(node) is None for node in place]
    return spelled(list(place), outer), [place[node] for node in body.outputs], repr(sizes), paths, recomputed


def _sizes(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.stride()} {tensor.storage_offset()} {tensor.dtype} {tensor.device}"


@dataclass(slots=True)
class _Copy:
    """Copies a traced body to where a block was left out."""

    pattern: _Body
    target: _Body
    weights: Mapping[str, fx.Node]
    _made: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _memory: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    """by the identity of the pattern's storage: the trace's tensors share memory just as the real ones will"""

    def make(self) -> None:
        placeholders = self.target.nodes
        for node, counterpart in zip(self.pattern.inputs, self.target.inputs, strict=True):
            self._identify(node, counterpart)
        for node, counterpart in zip(self.pattern.outputs, self.target.outputs, strict=True):
            self._share(node, counterpart)
        graph = self.target.leave.graph
        with graph.inserting_before(self.target.leave):
            for node in self.pattern.nodes:
                copy = self._made[node] = graph.node_copy(node, self._counterpart)
                copy.meta["nn_module_stack"] = self.pattern.moved_stack(node, self.target)
                if region_of(node):
                    mark(copy, region_of(self.target.enter))
                if "val" in node.meta:
                    copy.meta["val"] = pytree.tree_map_only(torch.Tensor, self._tensor, node.meta["val"])
        for node, placeholder in zip(self.pattern.outputs, self.target.outputs, strict=True):
            placeholder.replace_all_uses_with(self._made[node])
        for node in reversed(placeholders):
            graph.erase_node(node)

    def _identify(self, node: fx.Node, counterpart: fx.Node) -> None:
        self._made[node] = counterpart
        self._share(node, counterpart)

    def _share(self, node: fx.Node, counterpart: fx.Node) -> None:
        one, other = node.meta.get("val"), counterpart.meta.get("val")
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            self._memory[one.untyped_storage()._cdata] = other.untyped_storage()

    def _counterpart(self, node: fx.Node) -> fx.Node:
        if node not in self._made:  # a weight
            name = self.pattern.renamed(str(node.target), self.target.path)
            self._identify(node, self.weights[name])
        return self._made[node]

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memory:
            self._memory[storage._cdata] = torch.UntypedStorage(  # type: ignore[no-untyped-call]
                storage.nbytes(), device="meta"
            )
        assert isinstance(tensor, FakeTensor)
        plain = torch.empty(0, dtype=tensor.dtype, device="meta").set_(
            self._memory[storage._cdata], tensor.storage_offset(), tensor.shape, tensor.stride()
        )
        return FakeTensor(tensor.fake_mode, plain, tensor.device)
