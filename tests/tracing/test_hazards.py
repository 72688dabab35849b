"""Every hazard of the list is seen in one run, at its line, and the model is left as it was."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autopart.tracing.hazards import Hazard, find_hazards
from tests.hazards import HAZARDS

KINDS = {
    "function": (
        "CustomFunction", "FunctionHeldByTheModule", "FunctionInAutocast", "GradientReversal", "FunctionInPlace",
        "FunctionOfNests", "FunctionReadsWeight", "CheckpointedFunction",
    ),
    "checkpoint": tuple(name for name in HAZARDS if name.startswith("Checkpointed")),
    "autocast": ("Autocast", "FunctionInAutocast", "CheckpointedInAutocast", "CheckpointedAutocast"),
    "no-grad": ("NoGrad", "GradSwitchedOn"),
    "inference-mode": ("InferenceMode",),
    "seed": ("Seeding",),
    "tensor-hook": ("TensorHook",),
    "backward-hook": ("BackwardHook", "BackwardPreHook"),
    "forward-hook": ("ForwardHook", "ForwardPreHook"),
    "random": ("PythonLayerdrop", "PythonNoise", "NumpyNoise", "OwnDice", "Generated"),
    "state": ("Counting", "Remembering", "Accumulating", "Stateful"),
    "buffer": ("CheckpointedBatchNorm", "SpectralNorm"),
    "data-dependent": ("TorchLayerdrop", "Branching", "Items", "Numpy", "Mixture", "Masked"),
}  # fmt: skip


def hazards_of(name: str) -> tuple[Hazard, ...]:
    torch.manual_seed(0)
    each = HAZARDS[name]
    return find_hazards(each.build(), each.inputs(), each.kwargs, training=True)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_a_hazard_is_seen(kind: str, name: str) -> None:
    assert kind in {hazard.kind for hazard in hazards_of(name)}


def test_a_plain_model_has_none() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5), nn.LayerNorm(4))
    assert find_hazards(model, (torch.randn(2, 4),), training=True) == ()


def test_a_hazard_names_module_and_line() -> None:
    (hazard,) = {each for each in hazards_of("TensorHook") if each.module == "1"}
    assert Path(hazard.where.partition(":")[0]).name == "hazards.py"
    assert "y.register_hook(" in hazard.where
    assert "torch.export" in hazard.silent_in
    assert hazard.note().where == hazard.where


@pytest.mark.parametrize(
    "name", ["OwnDice", "Accumulating", "Counting", "Stateful", "SpectralNorm", "Numpy", "Seeding"]
)
def test_the_model_and_all_dice_are_left_as_they_were(name: str) -> None:
    torch.manual_seed(0)
    each = HAZARDS[name]
    model = each.build()
    torch.manual_seed(0)
    other = each.build()
    inputs = each.inputs()
    rolls = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state())
    find_hazards(model, inputs, each.kwargs, training=True)
    assert rolls[:2] == (random.getstate(), repr(np.random.get_state()))
    assert torch.equal(rolls[2], torch.get_rng_state())
    assert all(weight.grad is None for weight in model.parameters())
    for step in range(2):
        torch.manual_seed(step)
        found = model(*inputs)
        torch.manual_seed(step)
        assert torch.equal(found, other(*inputs))
