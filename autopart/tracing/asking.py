"""Code that asks whether it is traced, to take another way there: it is told that it is not.

``torch.compiler.is_exporting()`` and ``is_compiling()`` are true in a trace, and some models then compute the same in
another order (a triangular solve as a loop), which is not the unsplit model bit by bit.  Torch's own code gets torch's
answer, and so does code whose way outside of traces cannot be traced.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from autopart.tracing.culprit import tracebacks

__all__ = ["Asker", "answered_as_eager", "asker_of", "is_torchs"]

_QUESTIONS = ("is_compiling", "is_exporting")
_TORCH = f"{Path(torch.__file__).parent}/"


@dataclass(frozen=True, slots=True)
class Asker:
    """A function that asks, not merely for another."""

    code: CodeType
    caller: CodeType | None
    place: str
    """the line"""


@contextlib.contextmanager
def answered_as_eager(told: Set[CodeType] = frozenset()) -> Iterator[dict[CodeType, Asker]]:
    """Within, code that asks in a trace is told that there is none, unless it is torch's or among those ``told``.

    Gives those that were.
    """
    asked: dict[CodeType, Asker] = {}
    with contextlib.ExitStack() as stack:
        for name in _QUESTIONS:
            own = getattr(torch.compiler, name)
            stack.callback(setattr, torch.compiler, name, own)
            setattr(torch.compiler, name, _answering(own, name, told, asked))
        yield asked


def is_torchs(frame: FrameType) -> bool:
    """Whether it is torch's own code that runs."""
    return frame.f_code.co_filename.startswith(_TORCH)


def _answering(
    own: Callable[[], bool], question: str, told: Set[CodeType], asked: dict[CodeType, Asker]
) -> Callable[[], bool]:
    @functools.wraps(own)
    def answer() -> bool:
        caller = sys._getframe(1)
        if not own() or is_torchs(caller):
            return own()
        asker = _asker(caller)
        is_recording = get_proxy_mode() is None  # on real tensors perhaps, to be treated as those of a trace
        if asker.code in told or (is_recording and question == "is_compiling"):
            return True
        asked.setdefault(asker.code, asker)
        return False

    return answer


def _asker(frame: FrameType) -> Asker:
    """Functions like ``is_torchdynamo_exporting`` only pass the question on."""
    while frame.f_back is not None and frame.f_code.co_name.startswith("is_"):
        frame = frame.f_back
    caller = frame.f_back.f_code if frame.f_back is not None else None
    return Asker(frame.f_code, caller, f"{frame.f_code.co_filename}:{frame.f_lineno}")


def asker_of(error: BaseException, asked: dict[CodeType, Asker]) -> Asker | None:
    """The one whose way an error was met on, if it is one's: it was running, or its caller failed right after."""
    of_caller = {each.caller: each for each in asked.values()}
    for trace in tracebacks(error):
        codes = [frame.f_code for frame, _ in traceback.walk_tb(trace)][::-1]
        module = list(itertools.takewhile(lambda code: code is not nn.Module._call_impl.__code__, codes))
        own = [code for code in module if not code.co_filename.startswith(_TORCH)]
        found = next((asked[code] for code in own if code in asked), None) or of_caller.get(own[0] if own else None)
        if found is not None:
            return found
    return None
