"""What in a model's code tracers get wrong without a word, observed in one run of it on fake tensors."""

from __future__ import annotations

import contextlib
import functools
import linecache
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd import function as autograd_function
from torch.utils import checkpoint

from autopart.pythonstate import PythonState, dice_of
from autopart.restoring import left_as_it_was, training_mode
from autopart.schema.graph import Note
from autopart.tracing.culprit import first_line, place_of
from autopart.tracing.gathered import on_fakes

__all__ = ["Hazard", "find_hazards"]

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent), "<")
_FX, _EXPORT, _DYNAMO = "torch.fx", "torch.export", "dynamo"

_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "function": ("a custom autograd.Function: a graph of its operators has another backward", (_FX, _EXPORT)),
    "checkpoint": ("activation checkpointing: a graph keeps what should be computed again", (_FX, _EXPORT)),
    "autocast": ("an autocast region: its casts are lost", (_FX,)),
    "no-grad": ("a region without gradients: gradients flow through it", (_FX,)),
    "inference-mode": ("an inference-mode region: gradients flow through it", (_FX, _EXPORT)),
    "seed": ("torch's random numbers are seeded: a graph draws others", (_FX, _EXPORT, _DYNAMO)),
    "tensor-hook": ("a hook on a tensor's gradient: it is not called", (_FX, _EXPORT)),
    "backward-hook": ("hooks on a module's backward: they are not called", (_FX, _EXPORT)),
    "forward-hook": ("forward hooks: they run while tracing; only what they do to tensors stays", (_FX, _EXPORT)),
    "random": ("random numbers of Python or numpy: a graph draws the same ones for ever", (_FX, _EXPORT)),
    "state": ("forward changes a Python attribute: a graph does not, and reads the old value", (_FX, _EXPORT)),
    "buffer": ("forward writes a buffer: a graph may miss it", (_FX,)),
    "data-dependent": ("code that needs the values of tensors: it cannot be followed", ()),
}
"""kind: (what happens, tracers that are wrong about it without saying so)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """One thing in a model's code that some tracer gets wrong."""

    kind: str
    module: str
    """path of the innermost module whose code it is"""
    where: str
    """``model.py:12 (y = Rounded.apply(x))``; empty if no single line does it"""
    consequence: str
    silent_in: tuple[str, ...]
    """tracers that by themselves are wrong about it without saying so"""

    def note(self) -> Note:
        """As a remark of a Graph."""
        return Note(code=self.kind, message=f"{self.module or 'the model'}: {self.consequence}", where=self.where)


def find_hazards(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, training: bool
) -> tuple[Hazard, ...]:
    """All that a run of the model shows, each line once; on real tensors where fake ones do not go through.

    The model and all random numbers are left as they were.
    """
    kwargs = dict(kwargs or {})
    watch = _Watch(model)
    with training_mode(model, training), left_as_it_was(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = PythonState(model)
        try:
            with on_fakes(model, args, kwargs) as (near_args, near_kwargs), _watching(watch):
                versions = watch.versions()
                model(*near_args, **near_kwargs)
                watch.compare(versions)
        except Exception as error:
            watch.report("data-dependent", place=place_of(error), detail=first_line(error))
            state.restore()
            if not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
                with _watching(watch):
                    versions = watch.versions()
                    model(*args, **kwargs)
                    watch.compare(versions)
        state.note()
        watch.state(state)
    return tuple(watch.found)


class _Watch:
    """Gathers hazards, each once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: dict[Hazard, None] = {}
        self._names = {id(module): name for name, module in model.named_modules()}
        for name, module in model.named_modules():
            if module._backward_hooks or module._backward_pre_hooks:
                self.report("backward-hook", module=name)
            if module._forward_hooks or module._forward_pre_hooks:
                self.report("forward-hook", module=name)

    def report(self, kind: str, *, module: str | None = None, place: str | None = None, detail: str = "") -> None:
        """A hazard, at the line that is running if no other is named."""
        what, silent_in = _KINDS[kind]
        if module is None and place is None:
            module, place = self._here()
        self.found[Hazard(
            kind=kind, module=module or "", where=place or "", silent_in=silent_in,
            consequence=f"{what} ({detail})" if detail else what,
        )] = None  # fmt: skip

    def versions(self) -> list[tuple[str, str, torch.Tensor, int]]:
        """The buffers as they are now."""
        return [
            (path, name, buffer, buffer._version)
            for path, module in self.model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def compare(self, before: list[tuple[str, str, torch.Tensor, int]]) -> None:
        """Report the buffers that were written or replaced."""
        for path, name, buffer, version in before:
            if buffer._version != version or self.model.get_submodule(path)._buffers.get(name) is not buffer:
                self.report("buffer", module=path, detail=f"self.{name}")

    def state(self, state: PythonState) -> None:
        """Report what the run left in Python."""
        for module, name in state.changed:
            self.report("state", module=self._names[id(module)], detail=f"self.{name}")
        held = (dice for dice in dice_of(self.model) if isinstance(dice, torch.Generator))
        for dice in {*state.rolled, *held}:  # fake tensors are made without asking torch's
            self.report("random", module="", detail=type(dice).__name__)

    def _here(self) -> tuple[str, str]:
        """The innermost module that is running, and the line of the model's code."""
        module, place = None, ""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and module is None:
            file = frame.f_code.co_filename
            if not place and not file.startswith(_LIBRARIES):
                line = linecache.getline(file, frame.f_lineno).strip()
                place = f"{file}:{frame.f_lineno} ({line})"
            if frame.f_code.co_name == "_call_impl":
                module = self._names.get(id(frame.f_locals.get("self")))
            frame = frame.f_back
        return module or "", place


@contextlib.contextmanager
def _watching(watch: _Watch) -> Iterator[None]:
    """Within, what the running code does of the kinds above is reported, and done."""
    level: Any = autograd_function._SingleLevelFunction
    with contextlib.ExitStack() as stack:
        for owner, name, kind in (
            (torch.autocast, "__enter__", "autocast"),
            (torch.no_grad, "__enter__", "no-grad"),
            (torch.inference_mode, "__enter__", "inference-mode"),
            (torch.Tensor, "register_hook", "tensor-hook"),
            (checkpoint, "_checkpoint_without_reentrant_generator", "checkpoint"),
        ):
            _replace(stack, owner, name, _reporting(watch, getattr(owner, name), kind))
        generator = torch.default_generator
        _replace(stack, torch.random, "default_generator", _Reporting(watch, generator))
        level.apply = classmethod(functools.partial(_apply, watch))
        stack.callback(delattr, level, "apply")
        yield


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, replacement: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, replacement)


def _reporting(watch: _Watch, original: Callable[..., Any], kind: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def report(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_code.co_filename
        if kind in ("checkpoint", "seed") or not caller.startswith(_LIBRARIES[:2]) or "_contextlib" in caller:
            watch.report(kind)
        return original(*args, **kwargs)

    return report


class _Reporting:
    """torch's own generator, with its seeding reported."""

    def __init__(self, watch: _Watch, generator: torch.Generator) -> None:
        self._generator = generator
        self.manual_seed = _reporting(watch, generator.manual_seed, "seed")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def _apply(watch: _Watch, function: Any, *args: Any, **kwargs: Any) -> Any:
    if issubclass(function, checkpoint.CheckpointFunction):
        watch.report("checkpoint")
    elif not function.__module__.startswith("torch."):
        watch.report("function", detail=function.__name__)
    return super(autograd_function._SingleLevelFunction, function).apply(*args, **kwargs)
