"""Trace a model whose weights lie on several devices as if they were all on one.

That is a split model called with new shapes.  Its code cannot run as it is, nor need it: for the trace, fake tensors
stand in for the weights and inputs, where the first input is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

__all__ = ["gathered", "on_fakes", "put_back"]

_REGISTERS = ("_parameters", "_buffers")


@contextlib.contextmanager
def gathered(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Gives the arguments to call with; if all weights are on one device, the same, and nothing is changed."""
    if len({tensor.device for tensor in (*model.parameters(), *model.buffers())}) <= 1:
        yield args, kwargs
    else:
        with _faked(model, args, kwargs) as (near_args, near_kwargs, _):
            yield near_args, near_kwargs


@contextlib.contextmanager
def on_fakes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Gives the arguments to call with; whatever the model computes within is fake."""
    with _faked(model, args, kwargs) as (near_args, near_kwargs, mode), mode:
        yield near_args, near_kwargs


@contextlib.contextmanager
def _faked(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], FakeTensorMode]]:
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    device = inputs[0].device if inputs else torch.device("cpu")
    registers: list[dict[str, Any]] = [vars(each)[kind] for each in model.modules() for kind in _REGISTERS]
    before = [dict(register) for register in registers]
    fakes = _Fakes(device)
    try:
        for register in registers:
            register.update({name: fakes(tensor) for name, tensor in register.items() if tensor is not None})
        near_args, near_kwargs = pytree.tree_map_only(torch.Tensor, fakes, (args, kwargs))
        yield near_args, near_kwargs, fakes.mode
    finally:
        for register, own in zip(registers, before, strict=True):
            register.update(own)


def put_back(model: nn.Module, captured: fx.GraphModule) -> None:
    """Let the captured graph refer to the model's own weights instead of their stand-ins."""
    own = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    for path, module in captured.named_modules():
        for kind in _REGISTERS:
            register: dict[str, Any] = vars(module)[kind]
            for leaf, tensor in register.items():
                if isinstance(tensor, FakeTensor):
                    register[leaf] = own[f"{path}.{leaf}" if path else leaf]


class _Fakes:
    """One stand-in per tensor, so that tied weights stay tied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[int, torch.Tensor] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._known:
            with self.mode:
                fake = torch.empty_like(tensor, device=self._device, requires_grad=tensor.requires_grad)
                is_parameter = isinstance(tensor, nn.Parameter)
                self._known[id(tensor)] = nn.Parameter(fake.detach(), tensor.requires_grad) if is_parameter else fake
        return self._known[id(tensor)]
