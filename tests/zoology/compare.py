"""Run a model or its split twin from the same random state, and say what differs: bit by bit, no tolerance."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from tests.zoology.specimen import Case
from tests.zoology.state import left_as_it_was

__all__ = ["Outcome", "difference", "outcome"]

SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    outputs: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]


def outcome(runner: Callable[..., Any], case: Case) -> Outcome:
    """What one call gives and leaves in the model, which is put back as it was."""
    model = case.model
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (case.args, dict(case.kwargs)))
    with left_as_it_was(model):
        seed_all()
        with torch.set_grad_enabled(model.training):
            result = runner(*args, **kwargs)
        outputs = dict(tensors_in(result))
        gradients = _gradients(model, outputs) if model.training else {}
        buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        return Outcome(
            outputs={name: each.detach().clone() for name, each in outputs.items()},
            gradients=gradients, buffers=buffers,
        )  # fmt: skip


def seed_all() -> None:
    """Of torch, numpy and Python: models draw from all three."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)


def tensors_in(nest: Any, path: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a result by their paths; caches and other plain objects are opened."""
    if isinstance(nest, torch.Tensor):
        yield path, nest
        return
    if id(nest) in seen or isinstance(nest, nn.Module | str | bytes | type):
        return
    seen = seen | {id(nest)}
    if isinstance(nest, Mapping):
        inner: Iterator[tuple[Any, Any]] = iter(nest.items())
    elif isinstance(nest, list | tuple):
        inner = iter(enumerate(nest))
    else:
        inner = iter(vars(nest).items() if hasattr(nest, "__dict__") else ())
    for name, each in inner:
        yield from tensors_in(each, f"{path}.{name}", seen)


def _gradients(model: nn.Module, outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Of a loss in which every element of every output has a random weight of its own."""
    generator = torch.Generator().manual_seed(SEED)
    losses = []
    for each in outputs.values():
        if each.requires_grad and each.numel():
            real = torch.view_as_real(each) if each.is_complex() else each
            losses.append((real * torch.randn(real.shape, generator=generator).to(real)).sum())
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not losses or not parameters:
        return {}
    before = [each.grad for each in parameters.values()]
    for each in parameters.values():
        each.grad = None
    torch.autograd.backward(losses)  # not grad(), which reentrant checkpoints refuse
    found = {name: each.grad for name, each in parameters.items()}
    for each, gradient in zip(parameters.values(), before, strict=True):
        each.grad = gradient
    return found


def difference(expected: Outcome, found: Outcome) -> str:
    """Nothing if they are equal; else what differs first, and by how much."""
    for what in ("outputs", "gradients", "buffers"):
        ones, others = getattr(expected, what), getattr(found, what)
        if ones.keys() != others.keys():
            missing = sorted(ones.keys() ^ others.keys())
            return f"{what}: {len(missing)} on one side only, {missing[:2]}"
        wrong = [(name, _distance(ones[name], others[name])) for name in ones]
        wrong = [(name, far) for name, far in wrong if far]
        if wrong:
            name, far = wrong[0]
            return f"{what}: {len(wrong)} of {len(ones)} differ, first {name.lstrip('.')}: {far}"
    return ""


def _distance(one: torch.Tensor | None, other: torch.Tensor | None) -> str:
    if one is None or other is None:
        return "" if one is other else f"None against a tensor (expected {'None' if one is None else 'a tensor'})"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{tuple(other.shape)} {other.dtype} for {tuple(one.shape)} {one.dtype}"
    if one.layout == other.layout == torch.strided and bool(((one == other) | ((one != one) & (other != other))).all()):
        return ""
    if one.layout != torch.strided:
        return _distance(one.to_dense(), other.to_dense())
    if not one.is_floating_point():
        return "values differ"
    far, scale = (one.double() - other.double()).abs(), one.double().abs()
    return f"by {float(far.nan_to_num().max()):.2g} (largest value {float(scale.nan_to_num().max()):.2g})"
