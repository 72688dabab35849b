"""A Program: the live torch.fx graph of a model, and its Graph on paper.

The user's module keeps all state: segments refer to its Parameter and buffer objects, never to copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autopart.errors import UsageError
from autopart.recasting import recast
from autopart.schema.graph import Graph
from autopart.segment import Segment, build_segment, constants_read

__all__ = ["Program", "Segment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A traced model, for the shapes of one micro-batch and one training flag."""

    module: nn.Module
    """the user's own"""
    graph: Graph
    captured: fx.GraphModule
    layer_nodes: tuple[tuple[fx.Node, ...], ...]
    """the operators of each layer, in execution order"""
    weight_names: tuple[tuple[str, str], ...]
    """for each attribute that the graph reads, the weight's own (first) name"""
    device: torch.device
    """where the model's weights are, and segments run unless said otherwise"""
    sizes: tuple[str, ...] = ()
    """where among (args, kwargs) the integer tables are whose values it was traced for"""
    autocast: torch.dtype | None = None
    """segments compute in this type where torch.autocast would; what crosses between them is of the traced types"""
    stage_dtype: str = ""
    """segments compute in this type what the trace has in those that it replaces (``stagedtypes``); "": as traced"""

    def flatten_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """The tensors of a call that layers read, in the order of ``graph.crossing(0)``.

        Raises:
            UsageError: the call has another structure than the traced one.
        """
        spec, order = self._pytree_info.in_spec, self.keyword_order
        if sorted(kwargs) != sorted(order):
            raise UsageError(f"the model was traced with keyword arguments {sorted(order)}, not {sorted(kwargs)}")
        leaves, given = pytree.tree_flatten((args, {name: kwargs[name] for name in order}))
        if given != spec:
            raise UsageError(f"the model was traced for a call of another structure: {spec} is not {given}")
        placeholders = [node for node in self.captured.graph.nodes if node.op == "placeholder"]
        named = {node.name: leaf for node, leaf in zip(placeholders, leaves, strict=True)}
        return tuple(named[value.name] for value in self.graph.crossing(0))

    def unflatten_outputs(self, values: tuple[torch.Tensor, ...]) -> Any:
        """What the model returns, from the values of ``graph.crossing(len(graph.layers))``."""
        names = (value.name for value in self.graph.crossing(len(self.graph.layers)))
        named = dict(zip(names, values, strict=True))
        leaves = [self._output_leaf(leaf, named) for leaf in self._output_leaves]
        return pytree.tree_unflatten(leaves, self._pytree_info.out_spec)

    def segment(
        self,
        first: int,
        last: int,
        *,
        relay: bool = True,
        given: tuple[str, ...] = (),
        lifted: tuple[str, ...] = (),
        weight: Callable[[str], torch.Tensor] | None = None,
        device: torch.device | None = None,
    ) -> Segment:
        """Layers ``first`` .. ``last - 1`` as a module.

        Args:
            first: index of the first layer.
            last: one past the index of the last layer.
            relay: take all values that cross boundary ``first`` and give all that cross boundary ``last``, in the
                order of ``Graph.crossing``, so that segments that tile the model compose as ``b(*a(*inputs))``;
                False: take only what is read, give only what is produced here.
            given: constants that come as tensors after the inputs instead of being computed in the segment.
            lifted: weights that come as tensors last, because they live on another device.
            weight: where weights come from by name; the user's module if not given.
            device: where the segment runs; the model's own device if not given.
        """
        incoming, outgoing = self.graph.crossing(first), self.graph.crossing(last)
        if not relay:
            incoming = tuple(v for v in incoming if any(first <= each < last for each in v.consumers))
            outgoing = tuple(v for v in outgoing if v.producer >= first)
        names = dict(self.weight_names)
        segment = build_segment(
            [node for nodes in self.layer_nodes[first:last] for node in nodes],
            layers=range(first, last),
            layer_numbers={node.name: layer for layer in range(first, last) for node in self.layer_nodes[layer]},
            inputs=[value.name for value in incoming],
            outputs=[value.name for value in outgoing],
            given=given,
            lifted=lifted,
            weight_name=names.__getitem__,
            weight=weight or self.weight,
            device=device or self.device,
        )
        dtypes = [value.dtype for value in outgoing]
        if self.autocast is not None:
            segment = segment.under(self.autocast, dtypes)
        if not self.stage_dtype:
            return segment
        return recast(segment, self.stage_dtype, {value.name: value.dtype for value in incoming}, dtypes)

    def shared_constants(self) -> tuple[tuple[str, ...], ...]:
        """For each layer, the constants that it reads and that an earlier layer reads too.

        A stage computes each constant once; whoever runs layers one by one gives these to the later ones.
        """
        seen: set[str] = set()
        shared = []
        for nodes in self.layer_nodes:
            reads = constants_read(nodes)
            shared.append(tuple(name for name in reads if name in seen))
            seen.update(reads)
        return tuple(shared)

    def constants(
        self, names: tuple[str, ...], *, weight: Callable[[str], torch.Tensor], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """The values of these constants, computed on ``device``."""
        wanted = set(names)
        nodes = [node for node in self.captured.graph.nodes if node.name in wanted]
        if not nodes:
            return {}
        ordered = [node.name for node in nodes]
        segment = build_segment(
            nodes, layers=range(0), inputs=(), outputs=ordered, weight_name=dict(self.weight_names).__getitem__,
            weight=weight, device=device,
        )  # fmt: skip
        with torch.no_grad():
            return dict(zip(ordered, segment(), strict=True))

    def weight(self, name: str) -> torch.Tensor:
        """The user's own tensor of this name, as the module holds it now."""
        owner, _, leaf = name.rpartition(".")
        try:
            found = getattr(self.module.get_submodule(owner), leaf)
        except AttributeError:
            found = None
        if not isinstance(found, torch.Tensor):  # the trace lifted it out of the code
            found = attrgetter(name)(self.captured)
        assert isinstance(found, torch.Tensor)
        return found

    @property
    def keyword_order(self) -> list[str]:
        """Names of the keyword arguments of the traced call, in its order."""
        return list(self._pytree_info.in_spec.child(1).context)

    @property
    def _pytree_info(self) -> Any:
        return self.captured.graph._codegen.pytree_info  # type: ignore[attr-defined]

    @property
    def _output_leaves(self) -> tuple[Any, ...]:
        output = next(iter(reversed(self.captured.graph.nodes)))
        return tuple(output.args[0])

    def _output_leaf(self, leaf: Any, named: Mapping[str, torch.Tensor]) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        if leaf.op == "get_attr":
            return self.weight(dict(self.weight_names)[str(leaf.target)])
        return named[leaf.name]
