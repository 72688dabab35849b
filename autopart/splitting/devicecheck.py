"""Check a placement without the devices: run it, forward and backward, on fake tensors on as many fake devices.

FakeTensorMode raises wherever an operator is handed tensors of two devices, just as CUDA would.  Backward needs a
device that autograd can run without a driver, so stage i runs on ``meta:i``.  It misses index tensors that lie on
another device than what they index, and meta devices have no autocast: its regions run without casts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from autopart.errors import MismatchError
from autopart.program import Program
from autopart.schema.plan import Check
from autopart.splitting.stitch import Placement, Stitched, homes, stitch

__all__ = ["check_devices"]


_NO_FAKES = (
    DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException,
    UnsupportedOperatorException, NotImplementedError,
)  # fmt: skip
"""An operator has no kernel for fake tensors, or its result's shape depends on values."""


def check_devices(program: Program, boundaries: Sequence[int], *, backward: bool) -> Check:
    """Run the program cut before each of ``boundaries`` on as many fake devices; skipped where an operator has no fake.

    Raises:
        MismatchError: an operator was handed tensors of two devices, or a gradient came to the wrong one.
    """
    edges = [0, *boundaries, len(program.graph.layers)]
    placements = [
        Placement(first=first, last=last, device=torch.device("meta", index))
        for index, (first, last) in enumerate(itertools.pairwise(edges))
    ]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            home = homes(program, placements)
            weights = _fake_weights(program, home)
            stitched = stitch(program, placements, home, weight=weights.__getitem__)
            outputs = _run(program, stitched, backward=backward)
            _back(outputs, weights)
    except _NO_FAKES as error:
        return Check(name="devices", outcome="skipped", detail=f"cannot run on fake tensors: {_first_line(error)}")
    except (RuntimeError, TypeError) as error:
        raise MismatchError(
            f"the split program does not run on {len(placements)} devices: {_first_line(error)}"
        ) from error
    way = "forward and backward" if backward else "forward"
    return Check(
        name="devices", outcome="passed",
        detail=f"every operator's tensors are on one of {len(placements)} devices, {way}, on fake tensors",
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _fake_weights(program: Program, home: Mapping[str, torch.device]) -> dict[str, torch.Tensor]:
    fakes: dict[str, torch.Tensor] = {}
    for weight in program.graph.weights:
        real = program.weight(weight.name)
        fake = torch.empty(real.shape, dtype=real.dtype, device=home.get(weight.name, "meta:0"))
        fakes[weight.name] = nn.Parameter(fake, real.requires_grad) if isinstance(real, nn.Parameter) else fake
    return fakes


def _run(program: Program, stitched: Stitched, *, backward: bool) -> tuple[torch.Tensor, ...]:
    device = stitched.segments[0].device
    with torch.set_grad_enabled(backward):
        return stitched.run(
            [
                torch.empty(value.shape, dtype=getattr(torch, value.dtype), device=device)
                for value in program.graph.crossing(0)
            ]
        )


def _back(outputs: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    losses = [out.float().sum() for out in outputs if out.requires_grad]
    if not losses:
        return
    torch.autograd.backward(losses)
    for name, weight in weights.items():
        if weight.grad is not None and weight.grad.device != weight.device:
            raise RuntimeError(f"the gradient of {name} is on {weight.grad.device}, the weight on {weight.device}")
