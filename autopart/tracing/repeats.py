"""Trace repeated blocks once: a model of a hundred equal blocks takes hardly longer than one of two.

While a model on the meta device is exported, the calls of its repeated blocks (see ``likeness``) are intercepted.  The
first two with equal arguments are traced as they are, between two marks in the graph; of the later ones only the marks
are recorded, and fresh outputs of the right shapes.  Afterwards ``unrolling`` compares the two traced bodies and puts a
copy where the others belong.  Whatever speaks against it (a block that looks at its number, writes to itself or to its
inputs, uses what did not come in as an argument) leads to a trace block by block.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from autopart.schema.graph import Note
from autopart.tracing.likeness import Block, blocks_of, plain_state, watched
from autopart.tracing.nests import OpaqueError, described, fresh_like, layout, rebuilt
from autopart.tracing.unrolling import BOUNDARY, Call, NotRepeatedError, unroll

__all__ = ["export_repeated"]

FEWEST = 4
"""alike blocks below which there is little to gain"""


def export_repeated(
    model: nn.Module, export: Callable[[], fx.GraphModule]
) -> tuple[fx.GraphModule, tuple[Note, ...]]:
    """What ``export`` captures of the model, equal blocks of a model without weights traced once.

    Args:
        model: in the mode in which it is exported.
        export: calls torch.export; called again, with nothing intercepted, if blocks prove not to be equal.

    Returns:
        the graph module, complete; a note if the blocks had to be traced one by one.
    """
    blocks = blocks_of(model, fewest=FEWEST)
    if not blocks:
        return export(), ()
    recorder = _Recorder({id(vars(block.module)): block for block in blocks})
    try:
        with _intercepted(recorder):
            captured = export()
        unroll(captured, recorder.calls)
        return captured, ()
    except NotRepeatedError as error:
        reason = str(error)
    except Exception as error:  # if it is the model's own fault it comes again below
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return export(), (_note(blocks, reason),)


def _note(blocks: tuple[Block, ...], reason: str) -> Note:
    return Note(
        code="blocks-traced-one-by-one",
        message=f"the {len(blocks)} repeated blocks ({blocks[0].path}, ...) were traced one by one: {reason}",
        suggestion="nothing to do: the result is the same, it only took longer",
    )


@contextlib.contextmanager
def _intercepted(recorder: _Recorder) -> Iterator[None]:
    """``forward`` of the blocks' classes goes through the recorder."""
    classes = dict.fromkeys(type(block.module) for block in recorder.blocks.values())
    own = {each: vars(each).get("forward") for each in classes}
    try:
        for each in classes:
            each.forward = recorder.dispatch(each.forward)
        yield
    finally:
        for each, forward in own.items():
            if forward is None:
                del each.forward
            else:
                each.forward = forward


@dataclass(slots=True)
class _Recorder:
    """Decides of each call of a block whether it is traced, and marks it in the graph."""

    blocks: dict[int, Block]
    """by the identity of the module's attributes: torch.export hands modules on in disguise"""
    calls: list[Call] = field(default_factory=list)
    _patterns: dict[Any, list[Call]] = field(default_factory=lambda: defaultdict(list))
    _called: set[int] = field(default_factory=set)

    def dispatch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in for a class's ``forward``."""

        @functools.wraps(original)
        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            key = id(vars(module))
            if key not in self.blocks or key in self._called:  # a second call has other names
                return original(module, *args, **kwargs)
            self._called.add(key)
            return self._first_call(self.blocks[key], functools.partial(original, module), args, kwargs)

        return forward

    def _first_call(self, block: Block, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        tensors: list[torch.Tensor] = []
        try:
            arguments = described((args, kwargs), tensors)
            key = (block.likeness, arguments, layout(tensors), torch.is_grad_enabled(), _autocast())
        except OpaqueError:
            return original(*args, **kwargs)
        alike = self._patterns[key]
        pattern = next((each for each in alike if block.agrees(each.block, each.seen)), None)
        call, number = Call(block), len(self.calls)
        self.calls.append(call)
        BOUNDARY(tensors, number, False)
        if pattern is not None and pattern.usable and pattern.check is not None:
            call.pattern = pattern
            call.fresh = tuple(map(fresh_like, pattern.fresh))
            result = rebuilt(pattern.result, [*tensors, *call.fresh])
        else:
            result = _traced(call, original, args, kwargs, arguments, tensors)
            if pattern is None:
                alike.append(call)
            elif pattern.check is None:
                pattern.check = call
                pattern.usable = pattern.usable and call.usable and _return_alike(pattern, call)
        BOUNDARY(list(call.fresh), number, True)
        return result


def _traced(
    call: Call, original: Callable[..., Any], args: Any, kwargs: Any, arguments: Any, tensors: list[torch.Tensor]
) -> Any:
    """What the block returns; notes in ``call`` what, and whether its body may stand for others."""
    shapes = layout(tensors)
    with watched(call.block) as seen:
        before, plain = _state(call.block.module), plain_state(call.block.module)
        result = original(*args, **kwargs)
        is_unchanged = _same(before, _state(call.block.module)) and plain == plain_state(call.block.module)
    call.seen = frozenset(seen)
    everything, again = list(tensors), list[torch.Tensor]()
    with contextlib.suppress(OpaqueError):  # then it is not usable
        call.result = described(result, everything)
        call.fresh = tuple(everything[len(tensors) :])
        is_unchanged = is_unchanged and described((args, kwargs), again) == arguments
        is_unchanged = is_unchanged and _same(again, tensors) and layout(tensors) == shapes
        call.usable = is_unchanged and _have_own_memory(call, tensors)
    return result


def _have_own_memory(call: Call, inputs: list[torch.Tensor]) -> bool:
    """Whether no output shares memory with another, an input or a weight, or is a part of something larger."""
    module = call.block.module
    others = (*inputs, *module.parameters(), *module.buffers())
    storages = [tensor.untyped_storage()._cdata for tensor in (*others, *call.fresh)]
    own = storages[len(others) :]
    return len(set(own)) == len(own) and set(own).isdisjoint(storages[: len(others)]) and all(
        tensor.storage_offset() == 0
        and tensor.untyped_storage().nbytes() == fresh_like(tensor).untyped_storage().nbytes()
        for tensor in call.fresh
    )  # fmt: skip


def _return_alike(one: Call, other: Call) -> bool:
    return one.result == other.result and layout(one.fresh) == layout(other.fresh)


def _state(module: nn.Module) -> list[Any]:
    """Everything that hangs on a block's modules."""
    registers = ("_parameters", "_buffers", "_modules")
    found: list[Any] = []
    for each in module.modules():
        own = vars(each)
        found += (part for name, value in own.items() for part in (name, value))
        found += (part for kind in registers for name, value in own[kind].items() for part in (name, value))
    return found


def _same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _autocast() -> tuple[Any, ...]:
    return tuple(
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")
    )
