"""Run a model without leaving a trace in it: attributes, buffers, gradients and random numbers are put back."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["fresh", "kept", "seeded", "state_of"]

_REGISTERS = ("_parameters", "_buffers", "_modules")


@contextlib.contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Afterwards every submodule has the attributes, buffers (objects and values) and gradients that it had."""
    before = [(each, {name: _copied(value) for name, value in vars(each).items()}) for each in module.modules()]
    values = [(tensor, tensor.detach().clone()) for tensor in _tensors(module)]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for each, attributes in before:
            for register in _REGISTERS:  # segments share these dicts, so they stay the same objects
                own = vars(each)[register]
                own.clear()
                own.update(attributes.pop(register))
            registers = {name: vars(each)[name] for name in _REGISTERS}
            vars(each).clear()
            vars(each).update(attributes, **registers)
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):  # what nobody wrote to keeps its version
                    tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's, Python's and numpy's random numbers start from ``seed``; afterwards they go on as before."""
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)


def fresh(nest: Any) -> Any:
    """A copy of a call's arguments that the model may write to."""

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        return leaf if isinstance(leaf, nn.Module | type) or callable(leaf) else copy.deepcopy(leaf)

    return pytree.tree_map(copied, nest)


def state_of(module: nn.Module) -> tuple[tuple[str, str, Any], ...]:
    """The numbers and words among a model's attributes, and how long its lists are: what a trace may have fixed."""
    return tuple(
        (path, name, value if isinstance(value, bool | int | float | str) else len(value))
        for path, each in module.named_modules()
        for name, value in vars(each).items()
        if isinstance(value, bool | int | float | str | list | dict | set) and name not in _REGISTERS
    )


def _copied(value: Any) -> Any:
    """One level deep: what a forward appends to a list goes too."""
    return copy.copy(value) if type(value) in (dict, list, set) else value


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """Buffers, and tensors that are plain attributes."""
    plain = (value for each in module.modules() for value in vars(each).values() if isinstance(value, torch.Tensor))
    return [*module.buffers(), *plain]
