"""Measure every layer on a device that is here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from autopart.errors import DeviceError
from autopart.pace import Pacer, clock_for
from autopart.profiling.measuring.company import company
from autopart.profiling.measuring.layerwise import LayerTimes, layer_runner
from autopart.profiling.measuring.timing import Clock, median_and_spread, num_threads_set, own_stream
from autopart.profiling.measuring.updates import update_seconds
from autopart.profiling.measuring.weights import kept, weights_on
from autopart.program import Program
from autopart.progress import Progress, silent
from autopart.schema.device import Device
from autopart.schema.graph import Layer
from autopart.schema.profile import KindProfile

__all__ = ["measure"]

MIN_REPEATS, MAX_REPEATS = 2, 7
BUDGET_SECONDS = 8.0
"""after so long, and MIN_REPEATS, it is enough: repeated blocks give a sample each per run"""


def measure(
    program: Program,
    inputs: Sequence[torch.Tensor],
    device: Device,
    *,
    optimizer: str = "none",
    num_busy_beside: int = 0,
    clock: Clock | None = None,
    progress: Progress = silent,
    earlier: Sequence[LayerTimes] = (),
    keep: Callable[[Sequence[LayerTimes]], None] = lambda _: None,
) -> KindProfile:
    """Forward, backward and optimizer seconds of every layer on ``device``, at its kind's full speed.

    The median over several runs of the whole model, after one that warms up; layers with the same signature share
    their samples.  The user's buffers and gradients are put back.

    Args:
        program: of one micro-batch; its ``graph.training`` says whether backward is measured too.
        inputs: the tensors of ``program.flatten_inputs``.
        device: one that is here.
        optimizer: adamw, adam, sgd or none.
        num_busy_beside: other devices on this machine's cores that will compute at the same time; processes that keep
            as many cores busy run meanwhile.
        clock: seconds; not used on CUDA.  If not given: processor time of this thread for a device of one thread
            (which other processes cannot lengthen), else wall-clock time.
        progress: told about every run.
        earlier: runs of a call that did not come to its end; they count.
        keep: told about all runs after each, to be given as ``earlier`` another time.

    Raises:
        DeviceError: the device is not here, or the model has no weights and random ones do not fit in memory.
    """
    if device.torch_device is None:
        raise DeviceError(f"{device.name} is not here, so nothing can be measured on it")
    target = torch.device(device.torch_device)
    clock = clock or clock_for(device.num_threads)
    weights = weights_on(program, target)
    with num_threads_set(device.num_threads), own_stream(target), kept(weights):
        pacer = Pacer(target, clock)
        once = layer_runner(program, inputs, weights, target, clock)
        what = f"measuring micro-batches of {program.graph.batch_size} on {device.name}"
        with company(num_busy_beside):
            samples = _sample(once, pacer, clock, progress, what, earlier, keep)
        updates = update_seconds(program, weights, optimizer if program.graph.training else "none", target, clock)
    return _profile(device, program.graph.layers, samples, updates, pacer.seconds, num_busy_beside)


def _sample(
    once: Callable[[], LayerTimes], pacer: Pacer, clock: Clock, progress: Progress, what: str,
    earlier: Sequence[LayerTimes], keep: Callable[[Sequence[LayerTimes]], None],
) -> list[LayerTimes]:  # fmt: skip
    """The times of several runs, after one that warms up."""
    samples = list(earlier)
    started = clock()
    for run in range(1 + max(1, MAX_REPEATS - len(earlier))):
        progress(what, len(earlier) + run, 1 + MAX_REPEATS)
        times = once()
        if run:
            samples.append(times)
            keep(samples)
            pacer.sample()
        if run and len(samples) >= MIN_REPEATS and clock() - started > BUDGET_SECONDS:
            break
    progress(what, 1 + MAX_REPEATS, 1 + MAX_REPEATS)
    return samples


def _profile(
    device: Device, layers: Sequence[Layer], samples: Sequence[LayerTimes],
    updates: tuple[float, ...], pace: float, num_busy_beside: int,
) -> KindProfile:  # fmt: skip
    forward: dict[str, list[float]] = defaultdict(list)
    backward: dict[str, list[float]] = defaultdict(list)
    for times in samples:
        for layer, ahead, back in zip(layers, *times, strict=True):
            forward[layer.signature].append(ahead)
            backward[layer.signature].append(back)
    ahead_of = {signature: median_and_spread(each) for signature, each in forward.items()}
    back_of = {signature: median_and_spread(each)[0] for signature, each in backward.items()}
    threads = f", {device.num_threads} thread{'s' * (device.num_threads > 1)}" if device.num_threads else ""
    beside = f", {num_busy_beside} busy beside" if num_busy_beside else ""
    return KindProfile(
        kind=device.kind,
        origin="measured",
        basis=f"torch {torch.__version__}{threads}{beside}, median of {len(samples)} runs of the whole model",
        forward_seconds=tuple(ahead_of[layer.signature][0] for layer in layers),
        backward_seconds=tuple(back_of[layer.signature] for layer in layers),
        optimizer_seconds=updates,
        spread=tuple(ahead_of[layer.signature][1] for layer in layers),
        pace_seconds=pace,
    )
