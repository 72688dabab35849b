"""SplitModule: the user's model, split over devices, under its own names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.compression import Traffic
from autopart.errors import MismatchError, UsageError
from autopart.program import Program
from autopart.pytrees import open_classes, opened_objects
from autopart.schema.codec import CodecName
from autopart.schema.graph import Graph
from autopart.schema.plan import Plan
from autopart.splitting.stitch import Placement, Stitched, homes, stitch

__all__ = [
    "SplitModule", "StagePlacement", "Tracer", "boundaries_of", "move_weights", "placements_for", "side_by_side",
    "stage_placements", "traffic_of",
]  # fmt: skip

Tracer = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], bool], Program]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlacement:
    """The names of the layers that run on a torch device."""

    layers: tuple[str, ...]
    device: torch.device
    dtype: str = ""
    """what they compute in (``Stage.dtype``); "": as traced"""

    def __str__(self) -> str:
        return f"{self.device} in {self.dtype}" if self.dtype else str(self.device)


class SplitModule(nn.Module):
    """A model that runs on several devices: the same call, the same ``state_dict`` keys, the same Parameter objects.

    It is a view of the user's module: parameters, buffers and submodules are shared, and moved to their stages'
    devices in place, as ``module.to`` would.  A call with new shapes or sizes, in other training modes or with other
    hooks is traced anew and kept.  Outputs are on the last stage's device.  ``compress`` is the codec of what goes from
    stage to stage.
    """

    def __init__(
        self, module: nn.Module, stages: Sequence[StagePlacement], trace: Tracer, *, compress: CodecName = "none"
    ) -> None:
        super().__init__()
        for register in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[register] = module.__dict__[register]
        # Past nn.Module.__setattr__, which would refuse a name that one of the user's submodules has.
        self.__dict__.update(
            _whole=module, _stages=tuple(stages), _trace=trace, _traced={}, _sizes={}, _home={}, _state=(), _told=False,
            training=module.training, _compress=compress, _traffic=Traffic(),
        )  # fmt: skip

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the whole model would return.

        Raises:
            TracingError: the model cannot be traced for these inputs.
            MismatchError: traced for these inputs, the model has no layers at which the plan's stages begin.
            UsageError: the model has no values to compute with.
        """
        return _returned(self.stitched(args, kwargs)(args, kwargs), (args, kwargs))

    def stitched(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Stitched:
        """The stitched segments for calls of this form, traced now if there have been none."""
        if self._state != _state(self._whole):
            self._traced.clear()
        open_classes((args, kwargs))
        form = (_training_flags(self._whole), _form(args, kwargs))
        key = (form, self._sizes_in(form, args, kwargs))
        if key not in self._traced:
            self._tell(form[0])
            program, stitched = self._stitch(args, kwargs)
            self._sizes[form] = tuple(sorted({*self._sizes.get(form, ()), *program.sizes}))
            key = (form, self._sizes_in(form, args, kwargs))
            self._traced[key] = stitched
            self.__dict__["_state"] = _state(self._whole)
        found: Stitched = self._traced[key]
        return found

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, for the whole model."""
        self._whole.train(mode)
        self.__dict__["training"] = mode
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

    def __getstate__(self) -> dict[str, Any]:
        # Traces cannot be copied; a copy makes its own.
        return {**self.__dict__, "_traced": {}, "_sizes": {}, "_state": ()}

    def _tell(self, flags: tuple[bool, ...]) -> None:
        """Once, that calls of other shapes take a trace each."""
        if not self._told and any(flags == known for (known, _), _ in self._traced):
            self.__dict__["_told"] = True
            warnings.warn(
                "the split model is called with inputs of another structure, shape or size than before: every new one "
                "is traced once, and kept", stacklevel=6,
            )  # fmt: skip

    def _sizes_in(self, form: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values of the tables of sizes that traces of this form were made for."""
        paths = self._sizes.get(form, ())
        if not paths:
            return ()
        leaves = {pytree.keystr(path): leaf for path, leaf in pytree.tree_flatten_with_path((args, dict(kwargs)))[0]}
        return tuple((path, tuple(leaves[path].flatten().tolist())) for path in paths)

    def _stitch(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Program, Stitched]:
        program = self._trace(self._whole, args, kwargs, self._whole.training)
        placements = placements_for(program, self._stages)
        for name, device in homes(program, placements).items():
            self._home.setdefault(name, device)  # a weight stays where the first trace put it
        move_weights({name: program.weight(name) for name in self._home}, self._home)
        return program, stitch(program, placements, self._home, compress=self._compress, traffic=self._traffic)


def traffic_of(split: SplitModule) -> Traffic:
    """What codecs of a split model have sent since it was cleared (a method could hide a user's submodule)."""
    found: Traffic = split.__dict__["_traffic"]
    return found


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
        where = torch.device(device.torch_device)
        placements.append(StagePlacement(layers=stage.layers, device=where, dtype=stage.dtype))
    return tuple(placements)


def side_by_side(plan: Plan, device: torch.device) -> tuple[StagePlacement, ...]:
    """All stages of a plan on one device, to be compared with the unsplit model without moving anything."""
    return tuple(StagePlacement(layers=each.layers, device=device, dtype=each.dtype) for each in plan.stages)


def placements_for(program: Program, stages: Sequence[StagePlacement]) -> tuple[Placement, ...]:
    """The stages as ranges of a program's layers.

    Another sequence length may give other layers than those that were planned.  What counts is where stages begin: at
    the layer of the name, or at the first one inside it, or at the one that it lies in.

    Raises:
        MismatchError: some stage's first layer is not among the program's layers, in the stages' order.
    """
    edges = (0, *boundaries_of(program.graph, stages), len(program.graph.layers))
    return tuple(
        Placement(first=first, last=last, device=stage.device, dtype=stage.dtype)
        for first, last, stage in zip(edges[:-1], edges[1:], stages, strict=True)
    )


def boundaries_of(graph: Graph, stages: Sequence[StagePlacement]) -> tuple[int, ...]:
    """The layers at which the stages after the first begin; see ``placements_for``."""
    names = [layer.name for layer in graph.layers]
    edges = [0]
    for stage in stages[1:]:
        edges.append(_find(names, stage.layers[0], edges[-1] + 1))
    return tuple(edges[1:])


def _find(names: Sequence[str], wanted: str, start: int) -> int:
    """Index of the layer at which a stage begins whose first layer is ``wanted``."""
    later = range(start, len(names))
    kinships: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: name.startswith(wanted + "."),
        lambda name: wanted.startswith(name + "."),
    )
    for is_kin in kinships:
        for index in later:
            if is_kin(names[index]):
                return index
    raise MismatchError(
        f"a stage of the plan begins at {wanted}, which is not among the last {len(later)} of the {len(names)} layers "
        "that the model has for this call; plan again for such inputs"
    )


def move_weights(weights: Mapping[str, torch.Tensor], home: Mapping[str, torch.device]) -> None:
    """Put weights on their home devices, in place: parameters and buffers stay the same objects.

    Raises:
        UsageError: a weight has no values to move.
    """
    for name, device in home.items():
        tensor = weights[name]
        if tensor.device == device:
            continue
        if tensor.is_meta:
            raise UsageError(f"{name} has no values (meta device): load or initialise the model before splitting it")
        tensor.data = tensor.data.to(device)
        if tensor.grad is not None:
            tensor.grad.data = tensor.grad.data.to(device)


_HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks"
)  # fmt: skip


def _state(module: nn.Module) -> tuple[Any, ...]:
    """Changes when a weight is replaced (``load_state_dict(assign=True)``), moved or cast, or a hook comes or goes.

    The segments that were built for it hold the old tensors, so no new one can have the number of an old one.
    """
    weights = ((id(each), each.device, each.dtype) for each in (*module.parameters(), *module.buffers()))
    hooks = (tuple(vars(each)[kind]) for each in module.modules() for kind in _HOOKS if vars(each).get(kind))
    return (*weights, *hooks)


def _training_flags(module: nn.Module) -> tuple[bool, ...]:
    return tuple(each.training for each in module.modules())


def _form(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a trace depends on: structure, shapes and data types, and the values of all that is no tensor."""
    leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
    described = tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else (type(leaf), _hashable(leaf))
        for leaf in leaves
    )
    return (spec, described)


def _hashable(leaf: Any) -> Any:
    """The leaf; its identity where it cannot be compared."""
    try:
        hash(leaf)
    except TypeError:
        return id(leaf)
    return leaf


def _returned(result: Any, given: Any) -> Any:
    """The result with the caller's own objects in it, brought up to date, where the model returns what it was given.

    A trace takes a cache of keys and values apart and makes a new one, where the model's code writes into the old one.
    """
    own = opened_objects(given)
    if not own:
        return result
    new = opened_objects(result)
    if [type(each) for each in own] != [type(each) for each in new]:
        kinds = ", ".join(sorted({type(each).__name__ for each in own}))
        warnings.warn(
            f"the model was given a {kinds} and does not return it, so what its code may write into it is lost in the "
            "split model", stacklevel=5,
        )  # fmt: skip
        return result
    for mine, made in zip(own, new, strict=True):
        vars(mine).clear()
        vars(mine).update(vars(made))
    replaced = {id(made): mine for mine, made in zip(own, new, strict=True)}
    return pytree.tree_map(
        lambda leaf: replaced.get(id(leaf), leaf), result, is_leaf=lambda leaf: id(leaf) in replaced
    )
