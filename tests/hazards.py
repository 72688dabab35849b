"""Small modules, each with one thing that tracers or splitters get wrong, often without a word."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from tests.hazardous_functions import Doubled, Guarded, Reversed, Rounded, SwapScale, rounded

__all__ = ["HAZARDS", "Hazardous"]

WIDTH = 8
Step = Callable[[torch.Tensor], torch.Tensor]


def _vector() -> tuple[Any, ...]:
    return (torch.randn(4, WIDTH),)


@dataclass(frozen=True)
class Hazardous:
    """A model with one hazard and inputs for it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]] = _vector
    kwargs: dict[str, Any] = field(default_factory=dict)


HAZARDS: dict[str, Hazardous] = {}


def hazard(inputs: Callable[[], tuple[Any, ...]] = _vector, **kwargs: Any) -> Any:
    """Put a module class into the list, under its name."""

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        HAZARDS[cls.__name__] = Hazardous(build=cls, inputs=inputs, kwargs=kwargs)
        return cls

    return add


class Chain(nn.Module):
    """Four linear layers, with something between them that a subclass adds in ``between``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            x = self.between(layer(x), index)
        return x

    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        raise NotImplementedError


class Block(nn.Module):
    """A residual block with dropout."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm, self.drop = norm or nn.LayerNorm(4 * WIDTH), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
        return x + self.drop(self.down(torch.relu(self.norm(self.up(x))))) * scale  # type: ignore[no-any-return]


class Blocks(nn.Module):
    """Four blocks that a subclass calls in ``call``."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block(norm(4 * WIDTH)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = self.call(block, x)
        return x

    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


# Custom autograd.Functions: a graph of their operators has another backward.


@hazard()
class CustomFunction(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        return Rounded.apply(x, 0.5)  # type: ignore[no-any-return,no-untyped-call]


@hazard()
class FunctionHeldByTheModule(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        return rounded(x, scale=float(index))


@hazard()
class FunctionInAutocast(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = rounded(self.layers[index](x), 0.5)
        return x.float()


@hazard()
class GradientReversal(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        y = Reversed.apply(x)  # type: ignore[no-untyped-call]
        return y.mul_(2.0) if index == 2 else y  # type: ignore[no-any-return]


@hazard()
class FunctionInPlace(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        y = x * 1.5
        Doubled.apply(y)  # type: ignore[no-untyped-call]
        return y


@hazard()
class FunctionOfNests(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        (one, scale), other = SwapScale.apply({"x": x}, [x + 1.0, 3], None)  # type: ignore[no-untyped-call]
        return one * scale + other  # type: ignore[no-any-return]


@hazard()
class FunctionReadsWeight(Chain):
    """A home-made checkpoint: it reads a layer's weights without being given them."""

    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        return Guarded.apply(self.layers[index], x)  # type: ignore[no-any-return,no-untyped-call]


# Regions with a mode of their own.


@hazard()
class Autocast(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layers[index](x).float()  # type: ignore[no-any-return]


@hazard()
class NoGrad(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        with torch.no_grad():
            scale = self.layers[index](x).sigmoid()
        return x * scale  # type: ignore[no-any-return]


@hazard()
class InferenceMode(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        with torch.inference_mode():
            scale = self.layers[index](x).sigmoid()
        return x + scale.clone()  # type: ignore[no-any-return]


@hazard()
class GradSwitchedOn(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        with torch.no_grad():
            y = torch.tanh(x)
            with torch.enable_grad():
                y = y + self.layers[index](x.detach())
        return x + y  # type: ignore[no-any-return]


@hazard()
class Cond(Chain):
    def between(self, x: torch.Tensor, index: int) -> torch.Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))  # type: ignore[no-any-return]


# Activation checkpointing.


@hazard()
class Checkpointed(Blocks):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]


@hazard()
class CheckpointedReentrant(Blocks):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=True)  # type: ignore[no-any-return]


@hazard()
class CheckpointedWithoutGradient(Blocks):
    """A reentrant checkpoint whose input needs no gradient gives its weights none either."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = checkpoint(self.blocks[0], x, use_reentrant=True)
        return self.blocks[3](self.blocks[2](self.first(x)))  # type: ignore[no-any-return]


class _Normed(Blocks):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d)


@hazard()
class CheckpointedBatchNorm(_Normed):
    """The statistics are updated again in the recomputation."""

    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]


@hazard()
class CheckpointedBatchNormReentrant(_Normed):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=True)  # type: ignore[no-any-return]


@hazard()
class CheckpointedInAutocast(_Normed):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = checkpoint(block, x, use_reentrant=False)
        return x.float()


@hazard()
class CheckpointedAutocast(_Normed):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        def inside(value: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return block(value).float()  # type: ignore[no-any-return]

        return checkpoint(inside, x, use_reentrant=False)  # type: ignore[no-any-return]


@hazard()
class CheckpointedFunction(Blocks):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda value: rounded(block(value), 0.5), x, use_reentrant=False)  # type: ignore[no-any-return]


@hazard()
class CheckpointedWithOptions(Blocks):
    """Keyword arguments, a tensor of the surroundings, random numbers that are not preserved, no early stop."""

    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        block.drop.p = 0.0  # type: ignore[union-attr]
        scale = x.mean()
        return checkpoint(  # type: ignore[no-any-return]
            block, x, use_reentrant=False, scale=scale, preserve_rng_state=False, determinism_check="none"
        )


@hazard()
class CheckpointedSelectively(Blocks):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        def policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
            is_matmul = operator is torch.ops.aten.addmm.default
            return CheckpointPolicy.MUST_SAVE if is_matmul else CheckpointPolicy.PREFER_RECOMPUTE

        def contexts() -> Any:
            return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]

        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)  # type: ignore[no-any-return]


@hazard()
class CheckpointedInCheckpoint(Blocks):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        def outer(value: torch.Tensor) -> torch.Tensor:
            return checkpoint(block, torch.tanh(value), use_reentrant=False)  # type: ignore[no-any-return]

        return checkpoint(outer, x, use_reentrant=False)  # type: ignore[no-any-return]


@hazard()
class CheckpointedSequentially(Blocks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = list(self.blocks)
        return checkpoint_sequential(blocks, 3, self.first(x), use_reentrant=False)  # type: ignore[no-any-return,no-untyped-call]


# Random numbers that no graph records.


@hazard()
class PythonLayerdrop(Blocks):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x if self.training and random.random() < 0.5 else block(x)


@hazard()
class TorchLayerdrop(Blocks):
    def call(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x if self.training and torch.rand([]) < 0.5 else block(x)


class PythonNoise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * random.uniform(0.5, 2.0)


class NumpyNoise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + float(np.random.rand())


class OwnDice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dice, self.cubes = random.Random(3), np.random.default_rng(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.dice.random() + float(self.cubes.random())


class Seeding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(11)
        return x + torch.rand_like(x)


class Generated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dice = torch.Generator().manual_seed(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(x.shape, generator=self.dice)


def _among(module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A sequence of linear layers with the module twice among them."""
    return lambda: nn.Sequential(
        nn.Linear(WIDTH, WIDTH), module(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), module(), nn.Linear(WIDTH, WIDTH)
    )


# State that Python keeps.


class Counting(nn.Module):
    """Every call counts, and the count is used."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class Remembering(nn.Module):
    """What it keeps is for the user to look at, not for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: Any = None
        self.history: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shape = tuple(x.shape)
        self.history.append(x.shape[0])
        return x * 2.0


class Accumulating(nn.Module):
    """A list that grows, and is used."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(1.0)
        return x + sum(self.seen)


class Stateful(nn.Module):
    """A tensor that is no buffer, kept from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.last is None else x + self.last
        self.last = y.detach()
        return y


# Hooks.


class TensorHook(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2.0
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * 0.5)  # type: ignore[no-untyped-call]
        return y


def _hooked(register: str, hook: Callable[..., Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))
        getattr(model[1], register)(hook)
        return model

    return build


# Values of tensors decide.


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) if x.sum() > 0 else self.other(x)  # type: ignore[no-any-return]


class Items(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.abs().max().item()


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(np.tanh(x.detach().numpy()))


class Mixture(nn.Module):
    """Experts, with a branch on whether an expert has any tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, result = self.router(x).argmax(-1), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = torch.where(chosen == index)[0]
            if rows.numel() == 0:
                continue
            result.index_add_(0, rows, expert(x[rows]))
        return x + result


class Masked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x[x > 0].mean()


for _name, _build in {
    **{each.__name__: _among(each) for each in (
        PythonNoise, NumpyNoise, OwnDice, Seeding, Generated, Counting, Remembering, Accumulating, Stateful, TensorHook,
        Branching, Items, Numpy, Mixture, Masked,
    )},
    "ForwardHook": _hooked("register_forward_hook", lambda _, __, result: result * 2),
    "ForwardPreHook": _hooked("register_forward_pre_hook", lambda _, args: (args[0] + 1,)),
    "BackwardHook": _hooked("register_full_backward_hook", lambda _, given, __: (given[0] * 2,)),
    "BackwardPreHook": _hooked("register_full_backward_pre_hook", lambda _, given: tuple(each * 2 for each in given)),
    "WeightNorm": _among(lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "SpectralNorm": _among(lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
}.items():  # fmt: skip
    HAZARDS[_name] = Hazardous(build=_build)
