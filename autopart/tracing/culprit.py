"""Which module, and which line of its code, an error in a trace comes from."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import torch
from torch import nn

from autopart.tracing.sites import WHOLE_CALL

__all__ = ["Suspect", "first_line", "last_lines", "place_of", "suspects", "tracebacks"]

_LIBRARIES = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parent.parent}/", random.__file__, "<")


@dataclass(frozen=True, slots=True)
class Suspect:
    """A function that was running when an error was raised."""

    code: CodeType
    owner: nn.Module | None
    """whose method it is"""
    callers: tuple[dict[str, Any], ...]
    """namespaces in which its caller may have found it"""


def suspects(model: nn.Module, error: BaseException) -> list[Suspect]:
    """The functions of the model's code that were running, innermost first, from the first call of a module on."""
    named = getattr(error, "module", None)
    if named is not None:
        return [Suspect(nn.Module._call_impl.__code__, each, ()) for each in _and_those_around(model, named)]
    inside = set(model.modules())
    for trace in tracebacks(error):
        found: list[Suspect] = []
        outer: dict[str, Any] = {}
        for frame, _ in traceback.walk_tb(trace):
            code, owner = frame.f_code, frame.f_locals.get("self")
            owner = owner if isinstance(owner, nn.Module) and owner in inside else None
            is_call = code.co_name == WHOLE_CALL and owner is not None
            if is_call or (found and not code.co_filename.startswith(_LIBRARIES)):
                found.append(Suspect(code, owner, (outer, frame.f_globals)))
            outer = frame.f_globals
        if found:
            return found[::-1]
    return []


def _and_those_around(model: nn.Module, module: nn.Module) -> list[nn.Module]:
    """A module and the modules that it lies in, innermost first."""
    path = next(name for name, each in model.named_modules() if each is module)
    pieces = path.split(".") if path else []
    return [model.get_submodule(".".join(pieces[:end])) for end in range(len(pieces), -1, -1)]


def place_of(error: BaseException) -> str:
    """The line of the model's code that the error was raised at, ``model.py:12 (if x.sum() > 0:)``, or nothing."""
    for trace in tracebacks(error):
        frames = [each for each in traceback.extract_tb(trace) if not each.filename.startswith(_LIBRARIES)]
        if frames:
            return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})"
    named = getattr(error, "module", None)
    if named is not None:
        code = type(named).forward.__code__
        return f"{code.co_filename}:{code.co_firstlineno} (forward of {type(named).__name__})"
    return ""


def first_line(error: BaseException) -> str:
    """What the error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_lines(error: BaseException) -> str:
    """All that the error says."""
    return "".join(traceback.format_exception_only(error)).strip()


def tracebacks(error: BaseException | None) -> Iterator[TracebackType]:
    """Of an error and of those that it was raised from."""
    while error is not None:
        if error.__traceback__ is not None:
            yield error.__traceback__
        error = error.__cause__ or error.__context__
