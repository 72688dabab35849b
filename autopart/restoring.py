"""Leave the user's model, and the random numbers, as they were before it was run or traced."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.pythonstate import PythonState
from autopart.pytrees import open_classes

__all__ = [
    "attributes_kept", "chance_kept", "fresh", "gradients_kept", "left_as_it_was",
    "outputs_opened", "training_mode",
]  # fmt: skip

SEED = 0
"""of every recorded run, so that all ranks record the same"""


@contextlib.contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or eval mode, and afterwards every submodule in the mode that it had.

    If the model is in that mode already, submodules that the user set otherwise by hand (frozen BatchNorm) stay so.
    """
    before = [(module, module.training) for module in model.modules()]
    if model.training != training:
        model.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards nothing is there that forward left in attributes, lists or dice: it would be of fake tensors."""
    before = PythonState(model)
    try:
        yield
    finally:
        before.restore()


@contextlib.contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every parameter has the gradient that it had, the same object."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


@contextlib.contextmanager
def outputs_opened(model: nn.Module) -> Iterator[None]:
    """What the model returns has its classes made known to torch's pytrees."""
    handle = model.register_forward_hook(lambda _, __, result: open_classes(result))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def chance_kept() -> Iterator[None]:
    """Afterwards the random numbers of Python and numpy go on as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def left_as_it_was(model: nn.Module, seed: int = SEED) -> Iterator[None]:
    """For a real run, from random numbers that start at ``seed``.  Afterwards the model has its attributes, registers,
    buffers and gradients (the same objects) and the values of the buffers; torch, Python and numpy go on as before.
    """
    registers = [(register, dict(register)) for each in model.modules() for register in _registers(each)]
    values = [(tensor, tensor.detach().clone()) for tensor in _written(model) if not tensor.is_meta]
    try:
        with (
            attributes_kept(model),
            gradients_kept(model),
            chance_kept(),
            torch.random.fork_rng(range(torch.cuda.device_count())),
        ):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        for register, content in registers:  # others share these dicts, so they stay the same objects
            register.clear()
            register.update(content)
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value.to(tensor.device)):  # what nobody wrote to keeps its version
                    tensor.copy_(value)


def _registers(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return vars(module)["_parameters"], vars(module)["_buffers"], vars(module)["_modules"]


def _written(model: nn.Module) -> list[torch.Tensor]:
    """What a forward may write into: buffers, and tensors that are plain attributes."""
    plain = (value for each in model.modules() for value in vars(each).values() if isinstance(value, torch.Tensor))
    return [*model.buffers(), *plain]


def fresh(nest: Any) -> Any:
    """A copy of a call's arguments that the model may write to."""

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        return leaf if isinstance(leaf, nn.Module | type) or callable(leaf) else copy.deepcopy(leaf)

    return pytree.tree_map(copied, nest)
