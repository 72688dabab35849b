"""Examine one specimen: trace it in train and eval mode, split it in 2 and 4, compare with the unsplit model."""

from __future__ import annotations

import dataclasses
import time
import traceback
from typing import Any

from autopart.errors import AutopartError, MismatchError
from autopart.program import Program
from autopart.splitting import SplitModule, verify
from autopart.tracing import trace
from autopart.verbs import demoted
from tests.zoo import edges, stages_of
from tests.zoology.compare import Outcome, difference, outcome
from tests.zoology.result import ORDER, Check, Result
from tests.zoology.rival import rival_on
from tests.zoology.specimen import Case, NotBuiltError, Specimen

__all__ = ["examine", "examine_rival"]

STAGES = (2, 4)


def examine(specimen: Specimen, key: str, *, modes: tuple[str, ...] = ("train", "eval"), cache: bool = True) -> Result:
    """All checks of one specimen, in this process."""
    began = time.process_time()
    blank = Result(name=specimen.name, key=key, verdict="not built")
    try:
        case = specimen.build()
        if not cache:
            _without_cache(case)
    except Exception as error:  # of the model's own code: autopart has not been called yet
        return dataclasses.replace(blank, reason=_line(error), cpu_seconds=time.process_time() - began)
    checks: list[Check] = []
    notes: list[str] = []
    crash = ""
    num_layers = 0
    for mode in modes:
        try:
            found, layers, steady = _mode(case, mode)
            checks += found
            num_layers = max(num_layers, layers)
            notes += [] if steady else [f"two unsplit runs in {mode} mode differ from each other"]
        except AutopartError as error:
            checks += [Check(mode=mode, num_stages=number, verdict="refused", reason=_line(error)) for number in STAGES]
        except Exception as error:
            checks += [Check(mode=mode, num_stages=number, verdict="crash", reason=_line(error)) for number in STAGES]
            crash = crash or _tail(error)
    worst = min(checks, key=lambda check: ORDER.index(check.verdict))
    return dataclasses.replace(
        blank, verdict=worst.verdict, reason=worst.reason, checks=tuple(checks), num_layers=num_layers,
        notes=tuple(notes), num_parameters=sum(each.numel() for each in case.model.parameters()),
        cpu_seconds=round(time.process_time() - began, 2), traceback=crash,
    )  # fmt: skip


def _without_cache(case: Case) -> None:
    for module in case.model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False


def _mode(case: Case, mode: str) -> tuple[list[Check], int, bool]:
    """Checks, layers, and whether the unsplit model is equal to itself (looked at only if a split is not).

    A module that verification blames is traced as one layer next, as ``autopart plan`` does it.
    """
    case.model.train(mode == "train")
    expected = outcome(case.model, case)
    opaque: tuple[str, ...] = ()
    blamed = ""
    while True:
        program = trace(case.model, case.args, case.kwargs, training=case.model.training, opaque=opaque)
        checks, mismatch = _checks(case, mode, program, expected)
        if mismatch is None or "" in opaque:
            break
        opaque = demoted(case.model, opaque, mismatch)
        blamed = _line(mismatch)
    if "" in opaque:
        checks = [dataclasses.replace(each, reason=f"no trace was right: {blamed}"[:400]) for each in checks]
    wrong = any(check.verdict == "WRONG" for check in checks)
    steady = not wrong or not difference(expected, outcome(case.model, case))
    return [check if steady else _forgiven(check) for check in checks], len(program.graph.layers), steady


def _checks(
    case: Case, mode: str, program: Program, expected: Outcome
) -> tuple[list[Check], MismatchError | None]:
    """A check for each number of stages, and what verification says if one is not right."""
    num_layers, tracer = len(program.graph.layers), program.graph.tracer
    checks: list[Check] = []
    for number in STAGES:
        check = Check(mode=mode, num_stages=number, verdict="equal", tracer=tracer)
        if num_layers < 2:
            reason = "; ".join(note.message for note in program.graph.notes) or "the trace has one layer"
            checks.append(dataclasses.replace(check, verdict="one device", reason=reason[:400]))
            continue
        stages = stages_of(program, edges(num_layers, number))
        check = dataclasses.replace(check, found_stages=len(stages))
        split = SplitModule(case.model, stages, lambda *_: program)
        wrong = difference(expected, outcome(split, case))
        mismatch = _refusal(split, case) if wrong else None
        if mismatch is not None:
            refused = dataclasses.replace(check, verdict="refused", reason=f"{_line(mismatch)} [{wrong}]")
            return [*checks, refused], mismatch
        checks.append(dataclasses.replace(check, verdict="WRONG", reason=wrong) if wrong else check)
    return checks, None


def _refusal(split: SplitModule, case: Case) -> MismatchError | None:
    """What autopart's own verification says of a split that is wrong."""
    try:
        verify(split, case.model, case.args, case.kwargs)
    except MismatchError as error:
        return error
    return None


def _forgiven(check: Check) -> Check:
    """A difference from a model that differs from itself says nothing; it does not count as split either."""
    if check.verdict != "WRONG":
        return check
    return dataclasses.replace(check, verdict="unsteady", reason=f"two unsplit runs differ too: {check.reason}")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:400] if isinstance(error, AutopartError | NotBuiltError) else f"{type(error).__name__}: {text[:300]}"


def _tail(error: BaseException) -> str:
    """The last frames, and the error that caused it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}: {frame.line}" for frame in frames]
    own = [line for line in lines if line.startswith("autopart/")][-3:]
    return "\n".join([*own, *(line for line in lines[-4:] if line not in own), _line(error)])


def _short(filename: str) -> str:
    for marker in ("/site-packages/", "/main/"):
        if marker in filename:
            return filename.rpartition(marker)[2]
    return filename


def examine_rival(specimen: Specimen, key: str) -> Result:
    """What torch's pipeline() does with the specimen; without key-value caches, which it cannot capture at all."""
    began = time.process_time()
    try:
        case = specimen.build()
        _without_cache(case)
        rival = rival_on(case)
    except NotBuiltError as error:
        return Result(name=specimen.name, key=key, verdict="not built", reason=_line(error))
    return Result(
        name=specimen.name, key=key, verdict=rival.verdict, reason=rival.reason, rival=rival,
        cpu_seconds=round(time.process_time() - began, 2),
    )  # fmt: skip
