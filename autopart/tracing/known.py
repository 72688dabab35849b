"""Numbers that code reads from tensors, where they follow from constants and from the sizes that it is given.

A vision tower is handed the grid of every image as a small table of integers, and shapes its tensors by it.  While it
is traced, such numbers are computed beside the trace.  The graph is right for those sizes only, so it begins with a
check of every table that was read; who can trace again asks where they are (``KnownNumbers.read``).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from autopart.errors import RunError
from autopart.opaque import OpaqueCall, flat

__all__ = ["KnownNumbers", "numbers_known"]

LARGEST_TABLE, COLUMNS = 64, (2, 4)
"""of integers that are taken for sizes; no labels, time steps or tokens, which change from call to call"""
MOST_ELEMENTS = 4096
"""of a tensor that is computed beside the trace"""

_READERS = ("item", "tolist", "__int__", "__index__")
_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided")


class KnownNumbers:
    """Runs, beside a trace, what depends on nothing but constants and tables of sizes."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        found = pytree.tree_flatten_with_path((args, dict(kwargs)))[0]
        self._paths, self._leaves = [pytree.keystr(path) for path, _ in found], [leaf for _, leaf in found]
        self._graph: fx.Graph | None = None
        self._values: dict[fx.Node, Any] = {}
        self._tables: dict[fx.Node, frozenset[int]] = {}
        """inputs that a value follows from"""
        self._num_seen = 0
        self._read: set[int] = set()
        """positions of the tables of which numbers were read"""

    @property
    def read(self) -> tuple[str, ...]:
        """Where among ``(args, kwargs)`` the tables are of which numbers were read."""
        return tuple(self._paths[index] for index in sorted(self._read))

    def begin(self) -> None:
        """The traced model is called: its inputs are all there, and nothing has been done with them."""
        mode = get_proxy_mode()
        if mode is None or self._graph is not None:
            return
        graph = self._graph = mode.tracer.graph
        inputs = [node for node in graph.nodes if node.op == "placeholder"][-len(self._leaves) :]
        with _untraced():
            for index, (node, leaf) in enumerate(zip(inputs, self._leaves, strict=False)):
                if _is_table(leaf, node.meta.get("val")):
                    self._values[node], self._tables[node] = leaf.clone(), frozenset({index})

    def of(self, tensor: torch.Tensor, tracer: Any, read: Callable[[torch.Tensor], Any]) -> Any:
        """What ``read`` makes of a traced tensor's numbers, None if they are not known.

        Those of a region with a graph of its own (a checkpoint) are not.
        """
        slot = get_proxy_slot(tensor, tracer, None)
        node = None if slot is None else slot.proxy.node
        if node is None or node.graph is not self._graph or tensor.is_floating_point() or tensor.is_complex():
            return None
        with _untraced():
            for each in itertools.islice(node.graph.nodes, self._num_seen, None):
                self._num_seen += 1
                self._see(each, tracer.root)
            if node not in self._values:
                return None
            self._read |= self._tables[node]
            return read(self._values[node])

    def guard(self, captured: fx.GraphModule) -> None:
        """Let the graph begin with a check of the tables that were read."""
        places = [node for node in captured.graph.nodes if node.op == "placeholder"]
        for index in sorted(self._read):
            with captured.graph.inserting_after(places[-1]):
                node = captured.graph.call_function(_same_sizes(self._leaves[index]), (places[index],))
            node.meta["val"], node.meta["flops"] = [], 0
        captured.recompile()

    def _see(self, node: fx.Node, root: Any) -> None:
        inputs = node.all_input_nodes
        is_known = all(each in self._values for each in inputs)
        if node.op == "get_attr":
            held = getattr(root, str(node.target), None)
            if isinstance(held, torch.Tensor) and not isinstance(held, FakeTensor) and _is_small(held):
                self._values[node], self._tables[node] = held.clone(), frozenset()
        elif is_known and node.op == "call_function" and _is_certain(node):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
            with contextlib.suppress(Exception):  # then it is not known
                self._values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
                self._tables[node] = frozenset().union(*(self._tables[each] for each in inputs))
        if node not in self._values and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            self._forget([self._values[each] for each in inputs if each in self._values])

    def _forget(self, written: list[Any]) -> None:
        """All that shares memory with what was written to is not known any more."""
        memory = {each.untyped_storage()._cdata for each in pytree.tree_leaves(written)}
        for node, value in list(self._values.items()):
            if any(each.untyped_storage()._cdata in memory for each in pytree.tree_leaves(value)):
                del self._values[node]


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


@contextlib.contextmanager
def numbers_known(model: nn.Module, known: KnownNumbers) -> Iterator[None]:
    """Within, code that is traced and reads a number of an integer tensor gets it where it is known."""
    with contextlib.ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(lambda *_: known.begin()).remove)
        for name in _READERS:
            if name not in vars(torch.Tensor):  # else this is a trace inside a trace
                stack.callback(delattr, torch.Tensor, name)
                setattr(torch.Tensor, name, _reading(getattr(torch._C.TensorBase, name), known))
        own = torch.repeat_interleave
        stack.callback(setattr, torch, "repeat_interleave", own)
        setattr(torch, "repeat_interleave", _repeating(own, known))  # noqa: B010  # its type has overloads
        yield


def _repeating(own: Callable[..., torch.Tensor], known: KnownNumbers) -> Callable[..., torch.Tensor]:
    """With the size of its result, where the numbers of repeats are known."""

    @functools.wraps(own)
    def repeat(*args: Any, **kwargs: Any) -> torch.Tensor:
        mode, repeats = get_proxy_mode(), args[1] if len(args) > 1 else kwargs.get("repeats")
        if mode is not None and isinstance(repeats, torch.Tensor) and repeats.dim() == 1 and len(repeats) > 1:
            size = known.of(repeats, mode.tracer, lambda value: int(value.sum()))
            kwargs = kwargs if size is None else {"output_size": size, **kwargs}
        return own(*args, **kwargs)

    return repeat


def _reading(own: Callable[[torch.Tensor], Any], known: KnownNumbers) -> Callable[[torch.Tensor], Any]:
    def read(tensor: torch.Tensor) -> Any:
        mode = get_proxy_mode()
        value = None if mode is None else known.of(tensor, mode.tracer, own)
        return own(tensor) if value is None else value

    return read


def _is_table(leaf: Any, traced: Any) -> bool:
    """Whether an input is a table of sizes; ``traced`` is what stands for it."""
    if not isinstance(leaf, torch.Tensor) or isinstance(leaf, FakeTensor) or leaf.is_meta:
        return False
    is_it = isinstance(traced, torch.Tensor) and (traced.shape, traced.dtype) == (leaf.shape, leaf.dtype)
    is_integer = not leaf.is_floating_point() and not leaf.is_complex() and leaf.dtype is not torch.bool
    is_small = leaf.numel() <= LARGEST_TABLE and leaf.dim() == 2 and COLUMNS[0] <= leaf.shape[1] <= COLUMNS[1]
    return is_it and is_integer and is_small


def _is_small(value: Any) -> bool:
    leaves = pytree.tree_leaves(value)
    return all(isinstance(each, torch.Tensor) and each.numel() <= MOST_ELEMENTS for each in leaves)


def _is_certain(node: fx.Node) -> bool:
    """Whether a run of the operator gives the same again, and little of it."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem
    is_random = torch.Tag.nondeterministic_seeded in target.tags or target._schema.name.split("::")[-1] in _EMPTY
    return not is_random and target.namespace == "aten" and _is_small(node.meta.get("val"))


def _same_sizes(table: torch.Tensor) -> OpaqueCall:
    expected = table.detach().cpu().clone()

    def check(given: torch.Tensor) -> None:
        if not torch.equal(given.detach().cpu(), expected):
            raise RunError(
                f"the model's code shapes its tensors by an input that was {expected.tolist()} when it was planned "
                f"and is {given.tolist()} now; plan for inputs of these sizes"
            )

    return OpaqueCall(
        label="sizes", function=check, module=None, weight_names=(), arguments=flat(((table,), {}))[0],
        results=flat(None)[0], forms=(), written=frozenset(), aliased=frozenset(), flags=(),
        kind=f"sizes{expected.tolist()}", runs_on_fakes=False,
    )  # fmt: skip
