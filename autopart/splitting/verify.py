"""Compare a split model with the unsplit one: outputs, every gradient, every buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import MismatchError
from autopart.splitting.blame import first_layer_that_differs, layer_of_weight
from autopart.splitting.splitmodule import SplitModule

__all__ = ["verify"]

SEED = 1234


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one run of a model left behind."""

    outputs: tuple[torch.Tensor, ...]
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]


def verify(
    split: SplitModule,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    loss_fn: Callable[..., torch.Tensor] | None = None,
    targets: Sequence[Any] = (),
) -> None:
    """Run both with the same random seed, forward and (in training mode) backward, and compare every tensor.

    Without a ``loss_fn`` the loss is a fixed random projection of all floating outputs, so that no output can be
    swapped for another unnoticed.  On one kind of device results must be equal bit by bit; across kinds they may
    differ by rounding.  Buffers and gradients are put back as they were.

    Raises:
        MismatchError: they differ; names the first layer that does.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        _verify(split, module, args, kwargs, loss_fn, targets)


def _verify(
    split: SplitModule, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any],
    loss_fn: Callable[..., torch.Tensor] | None, targets: Sequence[Any],
) -> None:  # fmt: skip
    expected = _run(module, module, args, kwargs, loss_fn, targets)
    try:
        found = _run(split, module, args, kwargs, loss_fn, targets)
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[0]
        raise MismatchError(f"the split model fails where the unsplit one does not: {first_line}") from error
    stitched = split.stitched(args, kwargs)
    devices = {segment.device for segment in stitched.segments}
    same = _equal if {device.type for device in devices} == {"cpu"} else _close
    program = stitched.program
    if [each.shape for each in expected.outputs] != [each.shape for each in found.outputs]:
        raise MismatchError("the split model returns other shapes than the unsplit one")
    for index, (one, other) in enumerate(zip(expected.outputs, found.outputs, strict=True)):
        if not same(one, other):
            raise MismatchError(
                f"output {index} differs from the unsplit model's by up to {_distance(one, other):.3g}; "
                + (
                    "verify with all stages on one device to learn in which layer"
                    if len(devices) > 1  # the unsplit model, whose code blame needs, cannot run any more
                    else "the first layer that differs is "
                    + first_layer_that_differs(program, module, args, kwargs, SEED, same)
                )
            )
    for what, ones, others in (
        ("gradient", expected.gradients, found.gradients),
        ("buffer", expected.buffers, found.buffers),
    ):
        _compare(what, ones, others, program.graph, same)


def _compare(what: str, ones: Mapping[str, Any], others: Mapping[str, Any], graph: Any, same: Any) -> None:
    """Raise for the first weight, in layer order, whose gradients or values differ."""
    wrong = [name for name in ones if not _both(ones[name], others[name], same)]
    if wrong:
        layer, name = min((layer_of_weight(graph, name), name) for name in wrong)
        where = graph.layers[layer].name if layer < len(graph.layers) else "no layer of the trace"
        raise MismatchError(
            f"the {what} of {name} differs from the unsplit model's ({len(wrong)} of {len(ones)} do); "
            f"the first layer that differs is {where}"
        )


def _both(one: torch.Tensor | None, other: torch.Tensor | None, same: Callable[..., bool]) -> bool:
    if one is None or other is None:
        return one is other
    return same(one, other)


def _run(
    runner: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any],
    loss_fn: Callable[..., torch.Tensor] | None, targets: Sequence[Any],
) -> _Outcome:  # fmt: skip
    """One run, with the module's buffers put back afterwards."""
    before = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    torch.manual_seed(SEED)
    try:
        with torch.set_grad_enabled(module.training):
            result = runner(*args, **kwargs)
        outputs = tuple(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))
        gradients = _gradients(module, result, outputs, loss_fn, targets) if module.training else {}
        buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        return _Outcome(tuple(out.detach().clone() for out in outputs), gradients, buffers)
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])


def _gradients(
    module: nn.Module, result: Any, outputs: Sequence[torch.Tensor],
    loss_fn: Callable[..., torch.Tensor] | None, targets: Sequence[Any],
) -> dict[str, torch.Tensor | None]:  # fmt: skip
    loss = loss_fn(result, *targets) if loss_fn else _projection(outputs)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if loss is None or not loss.requires_grad or not names:
        return {}
    parameters = [parameter for _, parameter in module.named_parameters() if parameter.requires_grad]
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def _projection(outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """A scalar in which every element of every differentiable output has its own random weight."""
    generator = torch.Generator().manual_seed(SEED)
    terms = [
        (out * torch.randn(out.shape, generator=generator).to(out)).sum() for out in outputs if out.requires_grad
    ]
    return torch.stack([term.float() for term in terms]).sum() if terms else None


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal within torch.testing's tolerances for the data type."""
    try:
        torch.testing.assert_close(one.cpu(), other.cpu(), equal_nan=True)
    except AssertionError:
        return False
    return True


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.cpu().double() - other.cpu().double()).abs().max())
