"""What torch.export would get wrong without a word, refused where the model's code does it.

The ladder makes the module that it happens in an opaque layer, which runs as it is written.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.opaque import OpaqueCall
from autopart.pythonstate import PythonState
from autopart.tracing.asking import is_torchs
from autopart.tracing.gathered import on_fakes
from autopart.tracing.sites import CannotTraceError, Site, standing_in

__all__ = ["check_captured", "check_state", "faults_refused"]

Calls = Mapping[Site, Sequence[OpaqueCall]]
Run = Callable[[], None]


@contextlib.contextmanager
def faults_refused(model: nn.Module, state: PythonState) -> Iterator[None]:
    """Within, tracing code that seeds, hooks a gradient, enters inference mode or needs values raises CannotTraceError.

    What a forward changes of the Python state is noted for ``check_state``; torch.export takes some of it back.
    """
    generator = torch.default_generator
    handles = [each.register_forward_pre_hook(_refuse_backward_hooks) for each in model.modules() if _is_hooked(each)]
    handles.append(model.register_forward_hook(lambda *_: state.note()))
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        _replace(stack, torch.random, "default_generator", _Unseeded(generator))
        _replace(stack, torch.Tensor, "register_hook", _refused(
            torch.Tensor.register_hook, "a hook on the gradient of a tensor would be lost in a trace"
        ))  # fmt: skip
        _replace(stack, torch.inference_mode, "__enter__", _refused(
            torch.inference_mode.__enter__, "inference mode would be lost in a trace, and gradients flow where none may"
        ))  # fmt: skip
        if "data" not in vars(torch.Tensor):  # else this is a trace inside a trace
            stack.callback(delattr, torch.Tensor, "data")
            setattr(torch.Tensor, "data", property(_data, _TENSOR_DATA.__set__))  # noqa: B010  # of a base class
        for name in ("create_unbacked_symint", "create_unbacked_symfloat", "create_unbacked_symbool"):
            _replace(stack, ShapeEnv, name, _refuse_numbers)
        yield


_TENSOR_DATA: Any = torch.Tensor.data


def _data(tensor: torch.Tensor) -> torch.Tensor:
    """A trace does not see what is done with the ``data`` of a weight."""
    if isinstance(tensor, nn.Parameter) and get_proxy_mode() is not None and not is_torchs(sys._getframe(1)):
        raise CannotTraceError("it uses the data of a weight behind the back of autograd")
    data: torch.Tensor = _TENSOR_DATA.__get__(tensor)
    return data


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, replacement: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, replacement)


def _refused(original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if get_proxy_mode() is None:  # nothing is being recorded: inside an opaque call, say
            return original(*args, **kwargs)
        raise CannotTraceError(reason)

    return refuse


def _refuse_numbers(*_: Any, **__: Any) -> None:
    raise CannotTraceError("a number or shape is data-dependent here: only a run can tell it")


class _Unseeded:
    """torch's own random numbers, which may be drawn in a trace but not set: it would draw others each time."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        for name in ("manual_seed", "seed", "set_state"):
            setattr(self, name, _refused(getattr(generator, name), "seeding torch's random numbers is lost in a trace"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._backward_hooks or module._backward_pre_hooks)


def _refuse_backward_hooks(module: nn.Module, _: Any) -> None:
    if get_proxy_mode() is not None:
        raise CannotTraceError(f"the backward hooks of a {type(module).__name__} would not be called")


def check_captured(model: nn.Module, captured: fx.GraphModule) -> None:
    """Refuse a graph with operators whose results' shapes or numbers depend on the values of tensors.

    Raises:
        CannotTraceError: with the module that does it.
    """
    for node in captured.graph.nodes:
        if node.op == "call_function" and free_unbacked_symbols(node.meta.get("val")):
            raise _at(_module_of(model, node), f"{node.target} gives what depends on the values of tensors")
        if node.users and getattr(node.target, "__name__", "") == "_remove_batch_dim":
            raise _at(_module_of(model, node), "it maps a function over a batch, in a way that cannot be cut out")
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            held = getattr(captured.get_submodule(owner), name)
            if not isinstance(held, torch.Tensor | nn.Module):
                user = next(iter(node.users), node)
                raise _at(_module_of(model, user), f"it hands a {type(held).__name__} to {user.target}")


def check_state(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], before: PythonState, calls: Calls
) -> None:
    """Refuse a model whose trace depended on what calls leave behind in Python.

    Args:
        model: just traced.
        args: of the call.
        kwargs: of the call.
        before: what Python held before the trace.
        calls: what is opaque, and did not run in the trace.

    Raises:
        CannotTraceError: at the line that draws a random number; or with the module whose state is read again.
    """
    before.restore()
    run = functools.partial(_run_on_fakes, model, args, kwargs, calls)
    if before.rolled:
        _raise_at_the_draw(model, run, before.rolled)
        raise _at(model, "it draws random numbers of Python or numpy, other ones at every call")
    put_there = {(site.module, site.name) for site in calls}
    changed = [each for each in before.changed if each not in put_there]
    if changed and _logged(run) != _logged(run):
        module, name = changed[0]
        opaque = {site.module for site in calls}
        raise _at(_not_in(opaque, model, module), f"it computes with self.{name}, which it changes itself")
    before.restore()


def _run_on_fakes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], calls: Calls) -> None:
    with on_fakes(model, args, dict(kwargs)) as (near_args, near_kwargs), standing_in(calls):
        model(*near_args, **near_kwargs)


def _raise_at_the_draw(model: nn.Module, run: Run, dice: Collection[Any]) -> None:
    """Run it again, and raise at the line that throws one of the dice; where none is seen, with the module."""
    thrown = {id(each) for each in dice}
    modules = _Running(model)

    def watch(_: Any, event: str, function: Any) -> None:
        is_thrown = event == "c_call" and id(getattr(function, "__self__", None)) in thrown
        if is_thrown and function.__name__ not in ("getstate", "setstate"):
            raise _drawn(function.__name__)

    with contextlib.ExitStack() as stack:
        for name, method in list(vars(np.random).items()):  # compiled in a way that profilers do not see
            if id(getattr(method, "__self__", None)) in thrown:
                _replace(stack, np.random, name, functools.partial(_raise_drawn, name))
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(modules.enter).remove)
            stack.callback(module.register_forward_hook(modules.leave).remove)
        stack.callback(sys.setprofile, sys.getprofile())
        sys.setprofile(watch)
        run()


def _drawn(name: str) -> CannotTraceError:
    return CannotTraceError(f"{name}() draws another number at every call, and a trace would fix it")


def _raise_drawn(name: str, *_: Any, **__: Any) -> None:
    raise _drawn(name)


class _Running:
    """The modules that are running, innermost last; raises if one has thrown dice of the model in its own code."""

    def __init__(self, model: nn.Module) -> None:
        self._state = PythonState(model)
        self._modules: list[nn.Module] = []

    def enter(self, module: nn.Module, _: Any) -> None:
        self._look()
        self._modules.append(module)

    def leave(self, *_: Any) -> None:
        self._look()
        self._modules.pop()

    def _look(self) -> None:
        if self._modules and self._state.thrown():
            raise _at(self._modules[-1], "it draws random numbers of Python or numpy, other ones at every call")


def _logged(run: Run) -> list[str]:
    log = _Log()
    with log:
        run()
    return log.lines


class _Log(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator with its arguments, tensors by their shapes, and opaque calls without numbers."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = [] if str(func).startswith("autopart") else pytree.tree_leaves((args, kwargs))
        self.lines.append(f"{func} {' '.join(map(_spelled, leaves))}")
        return func(*args, **(kwargs or {}))


def _spelled(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return f"{leaf.dtype}{tuple(leaf.shape)}"
    return repr(leaf) if isinstance(leaf, bool | int | float | complex | str) else type(leaf).__name__


def _not_in(opaque: Collection[nn.Module | None], model: nn.Module, module: nn.Module) -> nn.Module:
    """The module, or the innermost one around it that is not opaque yet."""
    path = next(name for name, each in model.named_modules() if each is module)
    while path and model.get_submodule(path) in opaque:
        path = path.rpartition(".")[0]
    return model.get_submodule(path)


def _module_of(model: nn.Module, node: fx.Node) -> nn.Module:
    """The module whose code the operator was recorded in."""
    for path, _ in reversed((node.meta.get("nn_module_stack") or {}).values()):
        try:
            return model.get_submodule(str(path).partition("@")[0])
        except AttributeError:
            continue
    return model


def _at(module: nn.Module, reason: str) -> CannotTraceError:
    return CannotTraceError(reason, module=module)
