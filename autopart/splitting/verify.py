"""Compare a split model with the unsplit one: outputs, every gradient, every buffer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import AutopartError, MismatchError
from autopart.fusedattention import attention_in_parts, encoders, fusing
from autopart.program import Program
from autopart.pythonstate import PythonState
from autopart.restoring import fresh, left_as_it_was
from autopart.splitting.blame import first_layer_that_differs, layer_of_weight
from autopart.splitting.splitmodule import SplitModule

__all__ = ["Compared", "verify"]

SEED = 1234

Same = Callable[[torch.Tensor, torch.Tensor], bool]

RECAST_TOLERANCE = torch.finfo(torch.bfloat16).eps ** 0.5
"""where stages compute in another type than the model; rounding over many layers, as in ``_rounded``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How much was found equal."""

    num_outputs: int
    num_gradients: int
    num_buffers: int
    is_exact: bool
    """bit by bit; else within torch.testing's tolerances, because devices of several kinds are in it"""
    tolerance: float = 0.0
    """not 0 where stages compute in other types: tensors may differ by this share of their largest element"""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one run of a model left behind."""

    outputs: tuple[torch.Tensor, ...]
    spec: pytree.TreeSpec
    plain: tuple[Any, ...]
    """what it returned that is no tensor"""
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]
    is_stateful: bool
    """it changed attributes of the module, which a trace would have fixed"""


def verify(
    split: SplitModule, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *,
    loss_fn: Callable[..., torch.Tensor] | None = None, targets: Sequence[Any] = (),
) -> Compared:  # fmt: skip
    """Run both with the same random seed, forward and (in training mode) backward, and compare every tensor.

    Without a ``loss_fn`` the loss is a fixed random projection of all floating outputs, so that no output can be
    swapped for another unnoticed.  On one kind of device results must be equal bit by bit; across kinds they may
    differ by rounding.  The module is left as it was, its weights being on the split model's devices.

    Raises:
        MismatchError: they differ; names the first layer that does.
    """
    expected = _run(module, module, args, kwargs, loss_fn, targets)
    num_runs = 1
    if expected.is_stateful:  # the second run shows whether that matters
        num_runs = 2
        expected = _run(module, module, args, kwargs, loss_fn, targets, num_runs)
    try:
        found = _run(split, module, args, kwargs, loss_fn, targets, num_runs)
    except (AutopartError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MismatchError(f"the split model fails where the unsplit one does not: {first_line}") from error
    stitched = split.stitched(args, kwargs)
    devices = {segment.device for segment in stitched.segments}
    is_recast = any(segment.runner is not None for segment in stitched.segments)
    is_exact = {device.type for device in devices} == {"cpu"} and not is_recast
    same = _within(0.0) if is_recast else _equal if is_exact else _close
    program = stitched.program
    _compare_outputs(expected, found, same, lambda: _blamed(program, module, args, kwargs, devices, same))
    same_gradient = _within(_noise(expected.gradients.values())) if is_recast else same
    _compare("gradient", expected.gradients, found.gradients, program, same_gradient)
    _compare("buffer", expected.buffers, found.buffers, program, same)
    _compare_fused(split, module, args, kwargs)
    return Compared(
        num_outputs=len(expected.outputs), num_gradients=len(expected.gradients), num_buffers=len(expected.buffers),
        is_exact=is_exact, tolerance=RECAST_TOLERANCE if is_recast else 0.0,
    )  # fmt: skip


def _compare_outputs(one: _Outcome, other: _Outcome, same: Same, blamed: Callable[[], str]) -> None:
    if one.spec != other.spec or one.plain != other.plain:
        raise MismatchError(
            f"the split model returns another structure than the unsplit one: {_brief(other)}, not {_brief(one)}"
        )
    if [each.shape for each in one.outputs] != [each.shape for each in other.outputs]:
        raise MismatchError("the split model returns other shapes than the unsplit one")
    for index, (left, right) in enumerate(zip(one.outputs, other.outputs, strict=True)):
        if not same(left, right):
            layer = blamed()
            where = (
                f"the first layer that differs is {layer}" if layer
                else "verify with all stages on one device to learn in which layer"
            )
            raise MismatchError(
                f"output {index} differs from the unsplit model's by up to {_distance(left, right):.3g}; {where}",
                layer=layer,
            )


def _compare_fused(
    split: SplitModule, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Compare once more with what attention takes in inference, from which a split differs by rounding."""
    if module.training or not fusing(module):
        return
    whole, parts = (_run(each, module, args, kwargs, None, (), fuses=True) for each in (module, split))
    padded = next(iter(encoders(module)), "")
    _compare_outputs(whole, parts, _rounded, lambda: padded)


def _brief(outcome: _Outcome) -> str:
    text = " ".join(f"{outcome.spec} {outcome.plain}".split())
    return text if len(text) <= 100 else text[:99] + "…"


def _blamed(
    program: Program, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any],
    devices: set[torch.device], same: Same,
) -> str:  # fmt: skip
    if len(devices) > 1:  # the unsplit model, whose code blame needs, cannot run any more
        return ""
    with left_as_it_was(module, SEED):
        return first_layer_that_differs(program, module, args, kwargs, SEED, same)


def _compare(what: str, ones: Mapping[str, Any], others: Mapping[str, Any], program: Program, same: Same) -> None:
    """Raise for the first weight, in layer order, whose gradients or values differ."""
    names = dict.fromkeys((*ones, *others))  # one that has no gradients at all lists none
    wrong = [name for name in names if not _both(ones.get(name), others.get(name), same)]
    if wrong:
        graph = program.graph
        layer, name = min((layer_of_weight(graph, name), name) for name in wrong)
        where = graph.layers[layer].name if layer < len(graph.layers) else "no layer of the trace"
        raise MismatchError(
            f"the {what} of {name} differs from the unsplit model's ({len(wrong)} of {len(names)} do); "
            f"the first layer that differs is {where}"
        )


def _both(one: torch.Tensor | None, other: torch.Tensor | None, same: Same) -> bool:
    if one is None or other is None:
        return one is other
    return same(one, other)


def _run(
    runner: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any],
    loss_fn: Callable[..., torch.Tensor] | None, targets: Sequence[Any], num_runs: int = 1,
    *, fuses: bool = False,
) -> _Outcome:  # fmt: skip
    """The last of some runs, which leave nothing behind in the module."""
    state = PythonState(module)
    with left_as_it_was(module, SEED):
        for _ in range(num_runs):
            own_args, own_kwargs = fresh((args, dict(kwargs)))
            attention = contextlib.nullcontext() if fuses else attention_in_parts()
            with torch.set_grad_enabled(module.training), attention:
                result = runner(*own_args, **own_kwargs)
        leaves, spec = pytree.tree_flatten(result)
        outputs = tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        gradients: dict[str, torch.Tensor | None] = {}
        if module.training:
            loss = loss_fn(result, *targets) if loss_fn else _projection(outputs)
            gradients = _gradients(loss, dict(_wanted(module, own_args, own_kwargs)))
        state.note()
        return _Outcome(
            outputs=tuple(out.detach().clone() for out in outputs), spec=spec,
            plain=tuple(leaf for leaf in leaves if isinstance(leaf, bool | int | float | str)), gradients=gradients,
            buffers={name: buffer.detach().clone() for name, buffer in module.named_buffers()},
            is_stateful=bool(state.changed),
        )  # fmt: skip


def _wanted(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that a gradient may come to."""
    yield from ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
    for index, leaf in enumerate(pytree.tree_leaves((args, kwargs))):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            yield f"input {index}", leaf


def _gradients(loss: torch.Tensor | None, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    if loss is None or not loss.requires_grad or not wanted:
        return {}
    if any(getattr(tensor, "_post_accumulate_grad_hooks", None) for tensor in wanted.values()):
        # such a hook may be an optimizer's step
        return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()), allow_unused=True), strict=True))
    for tensor in wanted.values():
        tensor.grad = None
    loss.backward()  # type: ignore[no-untyped-call]  # reentrant checkpoints refuse torch.autograd.grad
    return {name: tensor.grad for name, tensor in wanted.items()}


def _projection(outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """A scalar in which every element of every differentiable output has its own random weight."""
    generator = torch.Generator().manual_seed(SEED)
    terms = [
        (out * torch.randn(out.shape, generator=generator).to(out)).sum() for out in outputs if out.requires_grad
    ]
    real = [(term.real if term.is_complex() else term).float() for term in terms]
    return torch.stack([term.to(real[0].device) for term in real]).sum() if terms else None


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


def _rounded(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for what rounding comes to over many layers: the root of the machine precision, of the largest."""
    if not one.is_floating_point() or one.dtype != other.dtype or not one.numel():
        return _equal(one, other)
    largest = float(one.detach().abs().max())
    return _distance(one, other) <= torch.finfo(one.dtype).eps ** 0.5 * largest or _equal(one, other)


def _noise(gradients: Iterable[torch.Tensor | None]) -> float:
    """What rounding makes of a gradient that is nothing, a bias before a normalisation: one unit of the largest."""
    found = [float(each.abs().max()) for each in gradients if each is not None and each.numel()]
    return torch.finfo(torch.bfloat16).eps * max(found, default=0.0)


def _within(noise: float) -> Same:
    """Equal but for ``RECAST_TOLERANCE`` of the largest element, and ``noise``."""

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        if not one.is_floating_point() or one.shape != other.shape or one.dtype != other.dtype or not one.numel():
            return _equal(one, other)
        is_finite = one.isfinite()
        if not is_finite.any() or not _equal(one[~is_finite], other[~is_finite]):
            return _equal(one, other)
        largest = float(one[is_finite].abs().max())
        distance = _distance(one[is_finite], other[is_finite])
        return bool(distance <= RECAST_TOLERANCE * largest + noise)  # NaN is not

    return same


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    wide = torch.complex128 if one.is_complex() else torch.float64
    return float((one.cpu().to(wide) - other.cpu().to(wide)).abs().max())
