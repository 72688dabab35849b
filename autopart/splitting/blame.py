"""Which layer is the first whose result differs from the unsplit model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autopart.fusedattention import attention_in_parts
from autopart.program import Program
from autopart.restoring import fresh, left_as_it_was
from autopart.schema.graph import Graph

__all__ = ["first_layer_that_differs", "layer_of_weight"]


def layer_of_weight(graph: Graph, name: str) -> int:
    """Index of the first layer that uses a weight; the number of layers if none does."""
    for index, layer in enumerate(graph.layers):
        if any(graph.weights[weight].name == name for weight in layer.weights):
            return index
    return len(graph.layers)


def first_layer_that_differs(
    program: Program,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seed: int,
    same: Callable[[torch.Tensor, torch.Tensor], bool],
) -> str:
    """Run the module with hooks and the program node by node; the layer of the first module whose output differs.

    A module of the user's is held to be computed right if some operator traced inside it gives its first output.
    """
    expected = _module_outputs(module, args, kwargs, seed)
    found = _node_values(program, args, kwargs, seed)
    for path, output in expected:
        inside = [node for node in found if _lies_in(node, path)]
        if inside and not any(_matches(found[node], output, same) for node in inside):
            last = inside[-1]
            for nodes, layer in zip(program.layer_nodes, program.graph.layers, strict=True):
                if last in nodes:
                    return layer.name
    return program.graph.layers[-1].name


def _module_outputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int
) -> list[tuple[str, torch.Tensor]]:
    """First tensor that each submodule returned on its first call, in the order in which they returned."""
    outputs: dict[str, torch.Tensor] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, result: Any) -> None:
            tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            if tensors and path not in outputs:
                outputs[path] = tensors[0].detach().clone()

        return hook

    handles = [each.register_forward_hook(record(path)) for path, each in module.named_modules() if path]
    try:
        _quietly(module, seed, lambda: module(*fresh(args), **fresh(dict(kwargs))))
    finally:
        for handle in handles:
            handle.remove()
    return list(outputs.items())


def _node_values(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int
) -> dict[fx.Node, torch.Tensor]:
    """What every operator of the program gives."""
    values: dict[fx.Node, torch.Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.op == "call_function" and isinstance(result, torch.Tensor):
                values[node] = result.detach().clone()
            return result

    leaves = pytree.tree_leaves(fresh((args, {name: kwargs[name] for name in program.keyword_order})))
    recorder = Recorder(program.captured)
    _quietly(program.module, seed, lambda: recorder.run(*leaves, enable_io_processing=False))
    return values


def _quietly(module: nn.Module, seed: int, act: Callable[[], Any]) -> None:
    with left_as_it_was(module, seed), torch.no_grad(), attention_in_parts():
        act()


def _lies_in(node: fx.Node, path: str) -> bool:
    stack = node.meta.get("nn_module_stack") or {}
    return any(str(entry[0]).partition("@")[0] == path and "@" not in str(key) for key, entry in stack.items())


def _matches(
    value: torch.Tensor, output: torch.Tensor, same: Callable[[torch.Tensor, torch.Tensor], bool]
) -> bool:
    return value.shape == output.shape and value.dtype == output.dtype and same(output, value)
