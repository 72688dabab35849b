"""SplitModule: the user's model, split over devices, under its own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import MismatchError, UsageError
from autopart.program import Program
from autopart.schema.plan import Plan
from autopart.splitting.stitch import Placement, Stitched, homes, stitch

__all__ = ["SplitModule", "StagePlacement", "placements_for", "stage_placements"]

Tracer = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], bool], Program]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlacement:
    """The names of the layers that run on a torch device."""

    layers: tuple[str, ...]
    device: torch.device


class SplitModule(nn.Module):
    """A model that runs on several devices: the same call, the same ``state_dict`` keys, the same Parameter objects.

    It is a view of the user's module: parameters, buffers and submodules are shared, and moved to their stages'
    devices in place, as ``module.to`` would.  A call with new shapes, or in the other training mode, is traced anew and
    kept.  Outputs are on the last stage's device.
    """

    def __init__(self, module: nn.Module, stages: Sequence[StagePlacement], trace: Tracer) -> None:
        super().__init__()
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[name] = module.__dict__[name]
        self.__dict__["_whole"] = module
        self.__dict__["_trace"] = trace
        self.__dict__["_traced"] = {}
        self.stages = tuple(stages)
        self.training = module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the whole model would return.

        Raises:
            TracingError: the model cannot be traced for these inputs.
            MismatchError: traced for these inputs, the model has other layers than the plan.
        """
        return self.stitched(args, kwargs)(args, kwargs)

    def stitched(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Stitched:
        """The stitched segments for calls of this form, traced now if there has been none."""
        key = (self.training, _form(args, kwargs), self._weight_identities())
        known: dict[Any, Stitched] = self._traced
        if key not in known:
            program = self._trace(self._whole, args, kwargs, self.training)
            placements = placements_for(program, self.stages)
            _move(program, homes(program, placements))
            known[(self.training, key[1], self._weight_identities())] = stitch(program, placements)
            key = (self.training, key[1], self._weight_identities())
        return known[key]

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, for the whole model."""
        self._whole.train(mode)
        self.training = mode
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The whole model's own."""
        return self._whole.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As the whole model's own."""
        return self._whole.load_state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_whole"], name)

    def _weight_identities(self) -> tuple[int, ...]:
        """Changes when a buffer or parameter object is replaced (``load_state_dict(assign=True)``, ``.to``)."""
        whole = self._whole
        return tuple(id(tensor) for tensor in (*whole.parameters(), *whole.buffers()))


def stage_placements(plan: Plan) -> tuple[StagePlacement, ...]:
    """Where a plan's stages run in this process.

    Raises:
        UsageError: a device of the plan is not here.
    """
    placements = []
    for stage in plan.stages:
        device = plan.cluster.device(stage.devices[0])
        if device.torch_device is None:
            raise UsageError(
                f"{device.name} is not here, so the plan can be looked at but not run: plan with devices that are here"
            )
        placements.append(StagePlacement(layers=stage.layers, device=torch.device(device.torch_device)))
    return tuple(placements)


def placements_for(program: Program, stages: Sequence[StagePlacement]) -> tuple[Placement, ...]:
    """The stages as ranges of a program's layers.

    Raises:
        MismatchError: the program's layers are not the stages', in their order.
    """
    planned = [name for stage in stages for name in stage.layers]
    traced = [layer.name for layer in program.graph.layers]
    if planned != traced:
        differing = next((pair for pair in zip(planned, traced, strict=False) if pair[0] != pair[1]), None)
        detail = f"the plan has {differing[0]} where the model has {differing[1]}" if differing else "one has more"
        raise MismatchError(
            f"the plan's {len(planned)} layers are not the model's {len(traced)} for this call: {detail}; plan again"
        )
    placements, first = [], 0
    for stage in stages:
        placements.append(Placement(first=first, last=first + len(stage.layers), device=stage.device))
        first += len(stage.layers)
    return tuple(placements)


def _move(program: Program, home: Mapping[str, torch.device]) -> None:
    """Put every used weight on its home device, in place: Parameter objects stay the same."""
    module = program.module
    for name, device in home.items():
        owner, _, leaf = name.rpartition(".")
        try:
            holder = module.get_submodule(owner)
        except AttributeError:
            continue  # a constant of the trace; its segment has a copy on its device
        tensor = getattr(holder, leaf, None)
        if not isinstance(tensor, torch.Tensor) or tensor.device == device:
            continue
        if tensor.is_meta:
            raise UsageError(f"{name} has no values (meta device): load or initialise the model before splitting it")
        if isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.to(device)
            if tensor.grad is not None:
                tensor.grad.data = tensor.grad.data.to(device)
        else:
            holder._buffers[leaf] = tensor.to(device)


def _form(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a trace depends on: structure, shapes and data types, and the values of all that is no tensor."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    described = tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else (type(leaf), leaf) for leaf in leaves
    )
    return (spec, described)
