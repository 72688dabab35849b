"""Group a captured graph's nodes into layers that users recognise.

The module hierarchy is refined from the root: a module whose share of the model's work and of its weights is above
``FINEST_SHARE`` is taken apart into the modules it calls, the others stay whole.  So a 12-block GPT-2 is placed by
``attn`` and ``mlp``, an 80-block Llama by block.  Runs of nodes that hold next to no work or weights (norms,
activations, residual additions) join a neighbour such that the boundary that goes is the one more bytes would cross.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from autopart.recompute import region_of
from autopart.tracing.effects import inseparable_spans, is_random, with_aliases, written_inputs

__all__ = ["Group", "constant_nodes", "group_nodes", "tensor_bytes"]

FINEST_SHARE = Fraction(4, 100)
LIGHT_SHARE = Fraction(1, 200)

Call = tuple[str, int]
"""a module's path and which of its calls this is"""


@dataclass(slots=True)
class Group:
    """A run of nodes on the way to become a layer."""

    path: str
    nodes: list[fx.Node]
    share: Fraction = Fraction(0)


def group_nodes(graph: fx.Graph, constants: set[fx.Node]) -> list[Group]:
    """The layers-to-be, in execution order, each with a unique name in ``path``.

    Between any two of them the graph may be cut: what may not be separated is in one group.
    """
    nodes = [node for node in graph.nodes if node.op == "call_function" and node not in constants]
    weight_of = _node_shares(nodes)
    homes = _homes(nodes, weight_of)
    groups: list[Group] = []
    group_of: dict[fx.Node, Group] = {}
    for node in nodes:
        home = homes[node]
        if node.target is operator.getitem and node.args[0] in group_of:  # a tuple is never cut from its parts
            group = group_of[node.args[0]]
        elif groups and groups[-1].path == home and not _begins_anew(node, groups[-1].nodes[-1]):
            group = groups[-1]
        else:
            groups.append(group := Group(path=home, nodes=[]))
        group.nodes.append(node)
        group.share += weight_of[node]
        group_of[node] = group
    return _named(_merge_light(_merge_inseparable(groups, inseparable_spans(graph, constants)), constants))


def _begins_anew(node: fx.Node, previous: fx.Node) -> bool:
    """Whether an operator is or enters a region (autocast, a checkpoint), which is not cut but may be cut off."""
    return isinstance(node.target, torch._ops.HigherOrderOperator) or region_of(node) != region_of(previous)


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on no input and no parameter: masks, positions, rotary tables.

    Every stage that needs them computes them itself instead of receiving them.
    """
    touched = {written for node in graph.nodes for written in with_aliases(written_inputs(node))}
    constants: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            pure = not isinstance(operator.attrgetter(str(node.target))(node.graph.owning_module), torch.nn.Parameter)
        else:
            pure = (
                node.op == "call_function"
                and not isinstance(node.target, torch._ops.HigherOrderOperator)
                and not is_random(node)
                and not written_inputs(node)
                and all(each in constants for each in node.all_input_nodes)
            )
        if pure and node not in touched:
            constants.add(node)
    returned = {each for node in graph.nodes if node.op == "output" for each in node.all_input_nodes}
    return {node for node in constants if node.op == "call_function" and node not in returned}


def tensor_bytes(node: fx.Node) -> int:
    """Bytes of a node's output tensor, 0 if it is none."""
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _node_shares(nodes: list[fx.Node]) -> dict[fx.Node, Fraction]:
    """Each node's share of the model's FLOPs or of its weights' bytes, whichever is larger."""
    flops = {node: rough_flops(node) for node in nodes}
    weights: dict[fx.Node, int] = defaultdict(int)
    seen: set[str] = set()
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and str(source.target) not in seen:
                seen.add(str(source.target))
                weights[node] += tensor_bytes(source)
    total_flops = max(sum(flops.values()), 1)
    total_weights = max(sum(weights.values()), 1)
    return {node: max(Fraction(flops[node], total_flops), Fraction(weights[node], total_weights)) for node in nodes}


def rough_flops(node: fx.Node) -> int:
    """FLOPs of matrix multiplications, convolutions and attention from the traced shapes; 0 for all else."""
    if "flops" in node.meta:  # an opaque call, as recorded
        return int(node.meta["flops"])
    value = node.meta.get("val")
    name = getattr(node.target, "__name__", str(node.target))
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        module = node.graph.owning_module
        inner = [
            getattr(module, str(each.target), None) for each in node.all_input_nodes if each.op == "get_attr"
        ]
        return sum(rough_flops(n) for each in inner if isinstance(each, fx.GraphModule) for n in each.graph.nodes)
    if not isinstance(value, torch.Tensor):
        return 0
    inputs = [each.meta.get("val") for each in node.all_input_nodes]
    shapes = [each.shape for each in inputs if isinstance(each, torch.Tensor)]
    if name.startswith(("linear", "mm", "addmm", "bmm", "baddbmm", "matmul")) and shapes:
        matrix = shapes[1] if name.startswith(("addmm", "baddbmm")) else shapes[0]
        return 2 * value.numel() * int(matrix[-1])
    if name.startswith(("conv", "_conv")) and len(shapes) > 1:
        return 2 * value.numel() * int(shapes[1][1:].numel())
    if name.startswith("scaled_dot_product") and len(shapes) > 2:
        return 2 * value.numel() * int(shapes[1][-2]) * 2
    if getattr(node.target, "overloadpacket", None) in flop_registry:
        return 2 * value.numel()
    return 0


@dataclass(slots=True)
class _Module:
    """One call of a module, with the share of all nodes inside."""

    path: str
    share: Fraction = Fraction(0)
    children: set[Call] = field(default_factory=set)


def _homes(nodes: list[fx.Node], shares: dict[fx.Node, Fraction]) -> dict[fx.Node, str]:
    """For each node, the module call it is placed with."""
    stacks: dict[fx.Node, list[Call]] = {}
    modules: dict[Call, _Module] = {}
    previous: list[Call] = [("", 0)]
    for node in nodes:
        previous = stacks[node] = _stack(node) or previous
        for depth, call in enumerate(previous):
            module = modules.setdefault(call, _Module(path=call[0]))
            module.share += shares[node]
            if depth + 1 < len(previous):
                module.children.add(previous[depth + 1])
    homes = {}
    for node, stack in stacks.items():
        depth = 0
        while depth + 1 < len(stack) and (modules[stack[depth]].share > FINEST_SHARE or stack[depth][0] == ""):
            depth += 1
        path, index = stack[depth]
        homes[node] = path if not index else f"{path}@{index + 1}"
    return homes


def _stack(node: fx.Node) -> list[Call]:
    """The module calls that a node lies in, outermost first."""
    stack: list[Call] = []
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        _, _, index = str(key).partition("@")
        name, _, own = str(path).partition("@")
        stack.append((name, int(index or own or 0)))
    return stack


def _merge_inseparable(groups: list[Group], spans: list[tuple[fx.Node, fx.Node]]) -> list[Group]:
    """Join all groups from the one that holds a span's first node to the one that holds its last."""
    index_of = {node: index for index, group in enumerate(groups) for node in group.nodes}
    joined = [False] * (len(groups) + 1)  # joined[k]: no boundary before group k
    for first, last in spans:
        for boundary in range(index_of.get(first, 0) + 1, index_of[last] + 1):
            joined[boundary] = True
    merged: list[Group] = []
    for index, group in enumerate(groups):
        if merged and joined[index]:
            left = merged[-1]
            path = left.path if left.share >= group.share else group.path
            merged[-1] = Group(path, left.nodes + group.nodes, left.share + group.share)
        else:
            merged.append(group)
    return merged


def _merge_light(groups: list[Group], constants: set[fx.Node]) -> list[Group]:
    """Join groups without real work to a neighbour, each time across the adjacent boundary most bytes would cross."""
    groups = list(groups)
    widths = _crossing_bytes(groups, constants)
    while len(groups) > 1 and any(group.share >= LIGHT_SHARE for group in groups):
        light = [index for index, group in enumerate(groups) if group.share < LIGHT_SHARE]
        if not light:
            break
        # Boundary k lies before group k.  The widest goes first; of equal ones the first.
        edges = {k for index in light for k in (index, index + 1) if 0 < k < len(groups)}
        widest = min(edges, key=lambda k: (-widths[k], k))
        left, right = groups[widest - 1], groups[widest]
        path = left.path if left.share >= right.share else right.path
        groups[widest - 1 : widest + 1] = [Group(path, left.nodes + right.nodes, left.share + right.share)]
        del widths[widest]
    return groups


def _crossing_bytes(groups: list[Group], constants: set[fx.Node]) -> list[int]:
    """Bytes of the tensors that cross the boundary before each group."""
    index_of = {node: index for index, group in enumerate(groups) for node in group.nodes}
    change = [0] * (len(groups) + 2)
    for node, index in index_of.items():
        users = (user for user in node.users if user not in constants)
        last = max((index_of.get(user, len(groups)) for user in users), default=index)
        if last > index:
            change[index + 1] += tensor_bytes(node)
            change[last + 1] -= tensor_bytes(node)
    return list(itertools.accumulate(change[: len(groups)]))


def _named(groups: list[Group]) -> list[Group]:
    """Give every group a name of its own: a path that comes again gets ``@2``, ``@3``, ..."""
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        base = group.path or "model"
        seen[base] += 1
        name = base if seen[base] == 1 else f"{base}@{seen[base]}"
        while name != base and name in seen:
            seen[base] += 1
            name = f"{base}@{seen[base]}"
        seen[name] += name != base
        named.append(Group(name, group.nodes, group.share))
    return named
