"""What a plan records about its split: compared with the unsplit model, or why not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autopart.errors import AutopartError, ModelSourceError, TracingError
from autopart.modelsource import Source, batch_of, with_batch
from autopart.program import Program
from autopart.schema.graph import Graph
from autopart.schema.plan import Check
from autopart.splitting.devicecheck import check_devices
from autopart.splitting.remembered import passed_before, remember
from autopart.splitting.splitmodule import SplitModule, StagePlacement, Tracer, boundaries_of, move_weights
from autopart.splitting.verify import Compared, verify
from autopart.units import format_bytes, format_count

__all__ = ["UNASKED_FLOPS", "check_split", "checks_known"]

UNASKED_FLOPS = 2.5e11
"""of the runs that a check takes which nobody asked for: about 15 processor seconds"""
SMALL_BATCHES = (2, 1)
"""tried in turn where a whole micro-batch is too much; batch normalisation cannot train on one sample"""
MEMORY_SHARE = 0.5
"""of what is free; the rest is for workspaces and for others"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What is to be checked."""

    source: Source
    program: Program
    stages: tuple[StagePlacement, ...]
    boundaries: tuple[int, ...]
    tracer: Tracer
    max_flops: float


def check_split(
    source: Source, program: Program, stages: Sequence[StagePlacement], tracer: Tracer, *,
    max_flops: float = UNASKED_FLOPS, anew: bool = False,
) -> tuple[Check, ...]:  # fmt: skip
    """Compare a split of the source's model with the unsplit model, as far as that can be done here and now.

    Values are compared on the source's batch if the free memory and ``max_flops`` allow, else on two samples or one;
    devices on fake tensors.  What passed once, for the same code, cuts and versions, is not done again.

    Args:
        source: model and inputs, of the batch that ``program`` was traced with, in the mode that it was traced in.
        program: the traced source.
        stages: what to check, on devices that are here.
        tracer: for smaller batches.
        max_flops: of both runs together.
        anew: check even what passed before.

    Raises:
        MismatchError: something differs; the weights are back where they were.
    """
    boundaries = boundaries_of(program.graph, stages)
    case = _Case(
        source=source, program=program, stages=tuple(stages), boundaries=boundaries, tracer=tracer, max_flops=max_flops
    )
    where = tuple(map(str, stages))
    checks = []
    for name, act in _CHECKS.items():
        check = None if anew else passed_before(name, program.graph, program.module, boundaries, where)
        if check is None:
            check = act(case)
            if check.outcome == "passed":
                remember(program.graph, program.module, boundaries, where, check)
        checks.append(check)
    return tuple(checks)


def checks_known(
    source: Source, graph: Graph, stages: Sequence[StagePlacement], *, has_values: bool,
    max_flops: float = UNASKED_FLOPS,
) -> tuple[Check, ...]:  # fmt: skip
    """What ``check_split`` would find for this graph of the source, if no check has to be made for it; else nothing.

    Args:
        source: whose ``model`` has the weights' names and shapes; their values are not looked at.
        graph: of the source, in the mode that is wanted.
        stages: as for ``check_split``.
        has_values: whether the weights have values, which ``source`` may be without for now.
        max_flops: of both runs together.

    Raises:
        MismatchError: the stages are not of this graph.
    """
    boundaries, where = boundaries_of(graph, stages), tuple(map(str, stages))
    known = []
    for name in _CHECKS:
        check = passed_before(name, graph, source.model, boundaries, where)
        if check is None and name == "values":
            found = _feasible(source, graph, stages[0].device, has_values, max_flops)
            check = None if isinstance(found, int) else found
        if check is None:
            return ()
        known.append(check)
    return tuple(known)


def _check_values(case: _Case) -> Check:
    source = case.source
    has_values = not any(tensor.is_meta for tensor in (*source.model.parameters(), *source.model.buffers()))
    found = _feasible(source, case.program.graph, case.program.device, has_values, case.max_flops)
    return _compared(case, found) if isinstance(found, int) else found


def _feasible(source: Source, graph: Graph, device: torch.device, has_values: bool, max_flops: float) -> int | Check:
    """The largest batch on which values can be compared here and now, or why there is none."""
    if not has_values:
        return _skipped("the weights have no values (meta device)")
    reason = ""
    for batch in _batches(source, graph.batch_size):
        reason = _too_much(graph, batch / graph.batch_size, device, max_flops)
        if not reason:
            return batch
    return _skipped(f"{reason}; `autopart verify` does it however long it takes")


def _check_devices(case: _Case) -> Check:
    return check_devices(case.program, case.boundaries, backward=case.program.graph.training)


_CHECKS: dict[str, Callable[[_Case], Check]] = {"values": _check_values, "devices": _check_devices}


def _compared(case: _Case, batch: int) -> Check:
    source, program = case.source, case.program
    samples = _samples(batch)
    if batch != program.graph.batch_size:
        source = with_batch(source, batch)
        try:
            program = case.tracer(source.model, source.args, source.kwargs, program.graph.training)
        except TracingError as error:
            return _skipped(f"a run of the whole micro-batch is too long, and with {samples}: {error}")
    split = SplitModule(source.model, case.stages, lambda *_: program)
    try:
        with _weights_returned_on_error(source.model):
            compared = verify(
                split, source.model, source.args, source.kwargs, loss_fn=source.loss_fn, targets=source.targets or ()
            )
    except AutopartError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        return _skipped(f"the unsplit model itself fails on {samples}: {type(error).__name__}: {first_line}")
    return Check(name="values", outcome="passed", detail=f"{_amount(compared)} ({samples})")


def _amount(compared: Compared) -> str:
    counts = (("gradient", compared.num_gradients), ("buffer", compared.num_buffers))
    parts = [f"{number} {name}{'s' if number > 1 else ''}" for name, number in counts if number]
    how = "bit by bit" if compared.is_exact else "within torch.testing's tolerances"
    if compared.tolerance:
        how = f"within {compared.tolerance:.1%} of the largest element, since stages compute in another type"
    return f"{' and '.join((', '.join(['outputs', *parts[:-1]]), *parts[-1:]))} equal the unsplit model's {how}"


def _samples(number: int) -> str:
    return f"{number} sample{'s' if number > 1 else ''}"


def _skipped(reason: str) -> Check:
    return Check(name="values", outcome="skipped", detail=reason)


def _batches(source: Source, whole: int) -> tuple[int, ...]:
    try:
        batch_of(source)
    except ModelSourceError:  # nothing to make smaller
        return (whole,)
    return (whole, *(each for each in SMALL_BATCHES if each < whole))


def _too_much(graph: Graph, factor: float, device: torch.device, max_flops: float) -> str:
    """Why two runs of ``factor`` micro-batches are not made; empty if they are."""
    flops = 2 * graph.flops * factor * (3 if graph.training else 1)
    if flops > max_flops:
        samples = _samples(round(factor * graph.batch_size))
        return f"two runs of {samples} take {format_count(flops).replace('B', 'G')}FLOP, more than is done unasked"
    gradients = sum(weight.bytes for weight in graph.weights if weight.trainable) if graph.training else 0
    buffers = sum(weight.bytes for weight in graph.weights if weight.is_buffer)
    saved = sum(layer.saved_bytes for layer in graph.layers)
    outputs = sum(value.bytes for value in graph.crossing(len(graph.layers)))
    working = saved + max(layer.peak_bytes for layer in graph.layers) + 2 * outputs
    needed, free = 2 * (gradients + buffers) + int(working * factor), int(MEMORY_SHARE * _free_bytes(device))
    if needed > free:
        return f"the runs need {format_bytes(needed)}, and {format_bytes(free)} may be used"
    return ""


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        free.append(int(limit[0]) - int(used[0]))
    return min(free, default=2**62)  # where it cannot be known, the allocator decides


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []


@contextlib.contextmanager
def _weights_returned_on_error(model: nn.Module) -> Iterator[None]:
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    before = {name: tensor.device for name, tensor in tensors.items()}
    try:
        yield
    except BaseException:
        move_weights(tensors, before)
        raise
