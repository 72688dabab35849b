"""An opaque call: one call of the user's own code that stands in a captured graph as a single operator.

What no tracer can follow (branches on tensor values, numpy, custom autograd functions) runs as it was written, with
the weights that its stage holds.  What the graph relies on, the structure, shapes and data types of its outputs, is
checked at every call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from autopart.errors import RunError
from autopart.fusedattention import attention_in_parts
from autopart.restoring import attributes_kept, chance_kept
from autopart.schema.graph import Work

__all__ = ["Nest", "OpaqueCall", "TensorForm", "flat", "tensors_of"]


@dataclass(frozen=True, slots=True)
class Nest:
    """The structure of arguments or results: a pytree, and its leaves that are no tensors."""

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    """None where a tensor belongs"""
    holes: tuple[int, ...]
    """indices of the leaves that are tensors"""

    @property
    def form(self) -> tuple[pytree.TreeSpec, tuple[int, ...]]:
        """What is the same for every nest of this structure."""
        return self.spec, self.holes

    def filled(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The nest with these tensors in it."""
        leaves = list(self.leaves)
        for hole, tensor in zip(self.holes, tensors, strict=True):
            leaves[hole] = tensor
        return pytree.tree_unflatten(leaves, self.spec)

    def on(self, device: torch.device) -> Nest:
        """The nest with every device in it replaced."""
        return replace(self, leaves=tuple(device if isinstance(each, torch.device) else each for each in self.leaves))


def flat(nest: Any) -> tuple[Nest, tuple[torch.Tensor, ...]]:
    """A nest taken apart into its structure and its tensors."""
    leaves, spec = pytree.tree_flatten(nest)
    holes = tuple(index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
    statics = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    return Nest(spec, statics, holes), tuple(leaves[hole] for hole in holes)


@dataclass(frozen=True, slots=True)
class TensorForm:
    """What the rest of the graph relies on about an output."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    differentiable: bool

    def empty(self, device: torch.device) -> torch.Tensor:
        """A tensor of this form."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpaqueCall:
    """Called with the tensors of the arguments, then those of the weights; gives the tensors of the result."""

    label: str
    """as users know it: ``encoder (opaque)``"""
    function: Callable[..., Any]
    module: nn.Module | None
    """whose weights it uses, and whose training flags count"""
    weight_names: tuple[str, ...]
    arguments: Nest
    results: Nest
    forms: tuple[TensorForm, ...]
    written: frozenset[int]
    """positions of the tensors it writes into"""
    aliased: frozenset[int]
    """positions of the tensors whose memory an output may share"""
    flags: tuple[bool, ...]
    """training flags of the module and all below it"""
    kind: str
    """equal for calls that do the same work, as far as one can tell from outside"""
    work: tuple[Work, ...] = ()
    """of the recorded run; like ``peak_bytes`` and ``saved_bytes``, which are without weights"""
    peak_bytes: int = 0
    saved_bytes: int = 0
    saved_inputs: tuple[int, ...] = ()
    """positions of the inputs that it keeps for backward beside them"""
    runs_on_fakes: bool = True

    __name__ = "opaque_call"
    __qualname__ = "opaque_call"
    __module__ = "autopart.opaque"

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors among the results.

        Raises:
            RunError: the results have another structure, shape or data type than when they were recorded.
        """
        is_fake = any(isinstance(each, FakeTensor) for each in tensors)
        if is_fake and not self.runs_on_fakes:
            results: tuple[torch.Tensor, ...] = _StandIn.apply(self, *tensors)  # type: ignore[no-untyped-call]
            return results
        inputs = tensors[: len(self.arguments.holes)]
        args, kwargs = self.arguments.filled(inputs)
        with self._as_recorded(), self._rehearsed() if is_fake else contextlib.nullcontext():
            result = self._run(args, kwargs, dict(zip(self.weight_names, tensors[len(inputs) :], strict=True)))
        found, outputs = flat(result)
        self._check(found, outputs)
        return outputs

    def on(self, device: torch.device) -> OpaqueCall:
        """The same call with every device among its arguments replaced."""
        return replace(self, arguments=self.arguments.on(device), results=self.results.on(device))

    def __str__(self) -> str:
        return self.kind

    def _run(self, args: Any, kwargs: Any, weights: dict[str, torch.Tensor]) -> Any:
        if self.module is None:
            return self.function(*args, **kwargs)
        own = tensors_of(self.module)
        if all(own[name] is tensor for name, tensor in weights.items()):
            return _buffers_in_place(self.module, self.function, args, kwargs)
        swapped = {f"module.{name}": tensor for name, tensor in weights.items()}
        return torch.func.functional_call(_Host(self.module), swapped, (self.function, args, kwargs))

    @contextlib.contextmanager
    def _as_recorded(self) -> Iterator[None]:
        """The module in the training flags of the trace, and afterwards in its own."""
        modules = () if self.module is None else tuple(self.module.modules())
        before = [module.training for module in modules]
        try:
            for module, flag in zip(modules, self.flags, strict=True):
                module.training = flag
            yield
        finally:
            for module, flag in zip(modules, before, strict=True):
                module.training = flag

    @contextlib.contextmanager
    def _rehearsed(self) -> Iterator[None]:
        """Afterwards nothing is left of the run: what it left would be fake."""
        kept = contextlib.nullcontext() if self.module is None else attributes_kept(self.module)
        with chance_kept(), kept, attention_in_parts():
            yield

    def _check(self, found: Nest, outputs: Sequence[torch.Tensor]) -> None:
        if found.form != self.results.form:
            raise RunError(
                f"{self.label} returned another structure than when it was traced ({found.spec} instead of "
                f"{self.results.spec}): tensor values decide what it returns, so trace the model with such inputs"
            )
        for index, (value, form) in enumerate(zip(outputs, self.forms, strict=True)):
            if tuple(value.shape) != form.shape or value.dtype != form.dtype:
                raise RunError(
                    f"output {index} of {self.label} is {tuple(value.shape)} {value.dtype}, but was {form.shape} "
                    f"{form.dtype} when traced: tensor values decide its shape, so trace the model with such inputs"
                )
        if not _same_leaves(found.leaves, self.results.leaves):
            raise RunError(f"{self.label} returned other values that are no tensors than when it was traced")


class _Host(nn.Module):
    """Lets functional_call swap the weights of a module and run a function of ours."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return _buffers_in_place(self.module, function, args, kwargs)


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Its parameters and buffers by name, tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _buffers_in_place(module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run it; a buffer that it replaced (``self.mean = ...``) is written into the old tensor, which others refer to."""
    before = [
        (owner, name, buffer) for owner in module.modules() for name, buffer in owner._buffers.items()
        if buffer is not None
    ]  # fmt: skip
    result = function(*args, **kwargs)
    for owner, name, old in before:
        new = owner._buffers.get(name)
        if new is not None and new is not old and (new.shape, new.dtype) == (old.shape, old.dtype):
            with torch.no_grad():
                old.copy_(new)
            owner._buffers[name] = old
    return result


def _same_leaves(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    pairs = zip(ones, others, strict=True)
    return all(one is other or (type(one) is type(other) and bool(one == other)) for one, other in pairs)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _StandIn(torch.autograd.Function):
    """On fake tensors, for code that needs real values: outputs of the recorded form, gradients to all inputs.

    It takes and keeps as many bytes as the recorded run did.
    """

    @staticmethod
    def forward(ctx: Any, call: OpaqueCall, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.tensors = tensors
        devices = {each.device for each in tensors if each.dim()}
        if len(devices) > 1:
            raise RuntimeError(f"{call.label} was handed tensors of several devices: {sorted(map(str, devices))}")
        device = next(iter(devices), torch.device("cpu"))
        inputs = tensors[: len(call.arguments.holes)]
        torch.empty(max(0, call.peak_bytes - sum(map(_bytes, inputs))), dtype=torch.uint8, device=device)
        own = torch.empty(call.saved_bytes, dtype=torch.uint8, device=device)
        ctx.save_for_backward(own, *(inputs[index] for index in call.saved_inputs))
        outputs = tuple(form.empty(device) for form in call.forms)
        ctx.mark_non_differentiable(
            *(each for each, form in zip(outputs, call.forms, strict=True) if not form.differentiable)
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return None, *(
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip(ctx.tensors, ctx.needs_input_grad[1:], strict=True)
        )
