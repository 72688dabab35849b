"""Run a model once, as it is, to learn what its opaque calls take and give; afterwards it is as it was."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import inspect
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from autopart.errors import TracingError
from autopart.fusedattention import attention_in_parts
from autopart.opaque import Nest, OpaqueCall, TensorForm, flat, tensors_of
from autopart.pytrees import open_classes, opened_objects
from autopart.restoring import left_as_it_was
from autopart.tracing.costing import booked
from autopart.tracing.culprit import first_line
from autopart.tracing.gathered import on_fakes
from autopart.tracing.sites import WHOLE_CALL, CannotTraceError, Site, intercepted

__all__ = ["record"]

_PLAIN = (
    bool, int, float, complex, str, bytes, slice, range, torch.dtype, torch.device, torch.Size, torch.layout,
    torch.memory_format, enum.Enum, type, type(None), type(...),
)  # fmt: skip


_ANYTHING = {
    "getattr", "modules", "named_modules", "children", "named_children", "parameters", "_modules", "__dict__", "vars",
}  # fmt: skip
"""names by which code reaches parts of a module that it does not name"""


def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], sites: Sequence[Site], *, training: bool
) -> dict[Site, list[OpaqueCall]]:
    """For each site the calls that the model makes, in order.

    The run is on fake tensors if the code allows that, else on the model's own weights.

    Raises:
        TracingError: the code needs real values and the weights have none.
    """
    calls = _Calls(model)
    try:
        with left_as_it_was(model), on_fakes(model, args, dict(kwargs)) as (near_args, near_kwargs):
            _run(model, near_args, near_kwargs, sites, calls, training=training)
        return calls.of_site
    except Exception as error:
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise TracingError(
                f"cannot trace {type(model).__name__}: parts of it must be run with real weights, and these have no "
                f"values (meta device): {first_line(error)}; load or initialise the weights"
            ) from error
    calls = _Calls(model)
    with left_as_it_was(model):
        _run(model, args, kwargs, sites, calls, training=training)
    return calls.of_site


def _run(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], sites: Sequence[Site], calls: _Calls,
    *, training: bool,
) -> None:  # fmt: skip
    with torch.set_grad_enabled(training), _exporting(True), attention_in_parts(), intercepted(sites, calls):
        model(*args, **kwargs)


@contextlib.contextmanager
def _exporting(flag: bool) -> Iterator[None]:
    """What ``torch.compiler.is_exporting()`` says: libraries hand on other arguments (masks) where they are traced."""
    before = torch.compiler._is_exporting_flag, torch.compiler._is_compiling_flag
    torch.compiler._is_exporting_flag = torch.compiler._is_compiling_flag = flag
    try:
        yield
    finally:
        torch.compiler._is_exporting_flag, torch.compiler._is_compiling_flag = before


class _Calls:
    """Runs what it is handed, and notes what went in and what came out."""

    def __init__(self, model: nn.Module) -> None:
        self.of_site: dict[Site, list[OpaqueCall]] = defaultdict(list)
        self._lasting = {id(value) for module in model.modules() for value in vars(module).values()}

    def __call__(
        self, site: Site, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        open_classes((args, kwargs))
        arguments, inputs = flat((args, kwargs))
        self._refuse_strangers(arguments, site)
        if opened_objects((args, kwargs)):
            raise CannotTraceError(f"{site.label} is handed an object that it may write to", site)
        weights = _weights_of(site)
        tensors = (*inputs, *weights.values())
        before = _Memory(tensors, site.module)
        with _exporting(False), booked(inputs, tuple(weights.values())) as cost:
            result = original(*args, **kwargs)
        open_classes(result)
        results, outputs = flat(result)
        self._refuse_strangers(results, site)
        storages = {each.untyped_storage()._cdata for each in outputs}
        call = OpaqueCall(
            label=site.label,
            function=original,
            module=site.module,
            weight_names=tuple(weights),
            arguments=arguments,
            results=results,
            forms=tuple(_form(each) for each in outputs),
            written=before.changed(),
            aliased=frozenset(i for i, each in enumerate(tensors) if each.untyped_storage()._cdata in storages),
            flags=() if site.module is None else tuple(each.training for each in site.module.modules()),
            kind=_kind(site, arguments),
            work=cost.work,
            peak_bytes=cost.peak_bytes,
            saved_bytes=cost.saved_bytes,
            saved_inputs=cost.saved_inputs,
        )
        self.of_site[site].append(_probed(call, tensors))
        return result

    def _refuse_strangers(self, nest: Nest, site: Site) -> None:
        """What is new in every call must be tensors and plain values; the model's own objects may be handed on."""
        for leaf in nest.leaves:
            if not isinstance(leaf, _PLAIN) and id(leaf) not in self._lasting:
                raise CannotTraceError(f"{site.label} takes or gives a {type(leaf).__name__}, no plain data", site)


class _Memory:
    """Tells which tensors a call wrote into: by their versions, and buffers by their values (``.data`` has none)."""

    def __init__(self, tensors: Sequence[torch.Tensor], module: nn.Module | None) -> None:
        self._tensors, self._module = tensors, module
        self._versions = [each._version for each in tensors]
        buffers = set() if module is None else {id(each) for each in module.buffers()}
        self._values = {i: each.detach().clone() for i, each in enumerate(tensors) if id(each) in buffers}

    def changed(self) -> frozenset[int]:
        held = set() if self._module is None else {id(each) for each in self._module.buffers()}
        found = {i for i, each in enumerate(self._tensors) if each._version != self._versions[i]}
        for index, old in self._values.items():
            new = self._tensors[index]
            if id(new) not in held or isinstance(new, FakeTensor) or not _same(new, old):
                found.add(index)  # of fake buffers nobody knows; rather one too many
        return frozenset(found)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _form(tensor: torch.Tensor) -> TensorForm:
    return TensorForm(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.requires_grad)


def _weights_of(site: Site) -> dict[str, torch.Tensor]:
    """All of a module's for its whole call; for another method those that its code names."""
    if site.module is None:
        return {}
    own = tensors_of(site.module)
    if site.name == WHOLE_CALL:
        return own
    names = _names_in(type(site.module), site.name, set())
    if names & _ANYTHING:
        return own
    return {name: tensor for name, tensor in own.items() if name.partition(".")[0] in names}


def _names_in(cls: type, method: str, seen: set[str]) -> set[str]:
    """Attribute names in a method's code, and in that of the methods which it calls."""
    code = getattr(inspect.unwrap(getattr(cls, method, None) or len), "__code__", None)
    seen.add(method)
    names: set[str] = set()
    codes = [code] if code else []
    while codes:
        each = codes.pop()
        names.update(each.co_names)
        codes += [inner for inner in each.co_consts if isinstance(inner, types.CodeType)]
    for name in names - seen:
        if inspect.isfunction(getattr(cls, name, None)) and not hasattr(nn.Module, name):
            names |= _names_in(cls, name, seen)
    return names


def _kind(site: Site, arguments: Nest) -> str:
    """Types, sizes and simple attributes of all modules inside."""
    digest = hashlib.sha256(f"{site.name}:{arguments.leaves}".encode())
    for name, each in [] if site.module is None else site.module.named_modules():
        simple = sorted((key, repr(value)) for key, value in vars(each).items() if isinstance(value, _PLAIN))
        digest.update(f"{name}:{type(each).__module__}.{type(each).__qualname__}:{simple}\n".encode())
    return f"opaque:{type(site.module).__qualname__}:{digest.hexdigest()[:16]}"


def _probed(call: OpaqueCall, tensors: Sequence[torch.Tensor]) -> OpaqueCall:
    """The call with whether its code runs on fake tensors too; if not, its costs are those of the recorded run."""
    if any(isinstance(each, FakeTensor) for each in tensors):
        return call
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(each, static_shapes=True) for each in tensors]
    try:
        with mode, _exporting(False):
            call(*fakes)
    except Exception:  # whatever it is that user code does with values that are not there
        return replace(call, runs_on_fakes=False)
    return call
