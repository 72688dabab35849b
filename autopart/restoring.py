"""Leave the user's model, and the random numbers, as they were before it was run or traced."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from autopart.pythonstate import PythonState
from autopart.pytrees import open_classes

__all__ = ["attributes_kept", "chance_kept", "left_as_it_was", "outputs_opened", "training_mode"]

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
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """For a real run: attributes, buffers and their values, and the random numbers of torch, Python and numpy."""
    registers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    devices = {tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"}
    try:
        with attributes_kept(model), chance_kept(), torch.random.fork_rng(sorted(devices)):
            torch.manual_seed(SEED)
            random.seed(SEED)
            np.random.seed(SEED)
            yield
    finally:
        for module, buffers in registers:
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
