"""Measure within a time: the most important layers first, each alone; what is left is estimated and scaled.

Every layer's samples are kept in the cache as soon as they are there, so a call that was killed is gone on with.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from autopart import cache
from autopart.profiling.measuring.alone import LayerSample, layer_alone
from autopart.profiling.measuring.timing import Clock, median_and_spread
from autopart.profiling.measuring.updates import one_update_seconds, updated_weights
from autopart.profiling.measuring.weights import PlacedWeights
from autopart.program import Program
from autopart.progress import Progress
from autopart.schema.device import Device
from autopart.schema.profile import KindProfile

__all__ = ["LayerTime", "combined", "measure_alone", "shares"]

NUM_SAMPLES = 3
"""of a layer, after one that warms up"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """What a layer took alone, in seconds and bytes; the bytes are None where no allocator tells."""

    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    spread: float
    peak_bytes: int | None = None
    saved_bytes: int | None = None


def shares(program: Program, guess: KindProfile) -> dict[str, float]:
    """Signature → its share of the guessed time of a step, largest first; equal layers count together."""
    seconds: dict[str, float] = defaultdict(float)
    for layer, *parts in zip(
        program.graph.layers, guess.forward_seconds, guess.backward_seconds, guess.optimizer_seconds, strict=True
    ):
        seconds[layer.signature] += sum(parts)
    total = sum(seconds.values()) or 1.0
    return {signature: seconds[signature] / total for signature in sorted(seconds, key=lambda one: -seconds[one])}


def measure_alone(
    program: Program, inputs: Sequence[torch.Tensor], device: Device, order: Sequence[str], *, optimizer: str,
    clock: Clock, in_time: Callable[[], bool], key: Sequence[str], progress: Progress, refresh: bool = False,
) -> dict[str, LayerTime]:  # fmt: skip
    """Signature → time, of as many layers as there is time for.

    Args:
        program: of one micro-batch.
        inputs: the tensors of ``program.flatten_inputs``.
        device: one that is here.
        order: the signatures, the most important first.
        optimizer: adamw, adam, sgd or none.
        clock: seconds; not used on CUDA.
        in_time: whether another layer may be begun.  At least one is measured.
        key: of the cache, without the layer.
        progress: told about every layer.
        refresh: measure anew what is in the cache.
    """
    target = torch.device(device.torch_device or "cpu")
    first = {layer.signature: index for index, layer in reversed(list(enumerate(program.graph.layers)))}
    what = f"measuring the layers on {device.name}, the most important first"
    found: dict[str, LayerTime] = {}
    for number, signature in enumerate(order):
        progress(what, number, len(order))
        own_key = (*key, "alone", signature)
        time = None if refresh else _kept(own_key)
        if time is None and (in_time() or not found):
            time = _measured(program, first[signature], inputs, target, optimizer, clock)
            if time:
                cache.write("alone", own_key, json.dumps(asdict(time)).encode())
        if time is not None:
            found[signature] = time
    progress(what, len(order), len(order))
    return found


def _kept(key: Sequence[str]) -> LayerTime | None:
    content = cache.read("alone", key)
    return None if content is None else LayerTime(**json.loads(content))


def _measured(
    program: Program, index: int, inputs: Sequence[torch.Tensor], device: torch.device, optimizer: str, clock: Clock
) -> LayerTime | None:
    """None, with a warning, where the layer cannot be run by itself."""
    weights = PlacedWeights(program, device)
    try:
        once = layer_alone(program, index, inputs, weights, device, clock)
        samples = [once() for _ in range(1 + NUM_SAMPLES)][1:]
        changed = [weights[name] for name in updated_weights(program)[index]]
        updates = one_update_seconds(changed, optimizer, device, clock) if program.graph.training else 0.0
    except (RuntimeError, ValueError, IndexError) as error:  # made-up inputs, or too little memory
        warnings.warn(
            f"{program.graph.layers[index].name} cannot be measured alone ({str(error).splitlines()[0]}); "
            "its time is estimated",
            stacklevel=2,
        )
        return None
    return _summary(samples, updates)


def _summary(samples: Sequence[LayerSample], updates: float) -> LayerTime:
    forward, spread = median_and_spread([each.forward_seconds for each in samples])
    return LayerTime(
        forward_seconds=forward,
        backward_seconds=median_and_spread([each.backward_seconds for each in samples])[0],
        optimizer_seconds=updates,
        spread=spread,
        peak_bytes=samples[-1].peak_bytes,
        saved_bytes=samples[-1].saved_bytes,
    )


def combined(program: Program, guess: KindProfile, found: Mapping[str, LayerTime], device: Device) -> KindProfile:
    """The measured times, and for the other layers the guess scaled by what was measured of the same kind.

    Forward, backward and optimizer are scaled each by itself: measured / guessed, summed over the measured layers.
    """
    layers = program.graph.layers
    signatures = [layer.signature for layer in layers]
    rows = []
    for part in ("forward_seconds", "backward_seconds", "optimizer_seconds"):
        guessed: tuple[float, ...] = getattr(guess, part)
        real = [getattr(found[one], part) if one in found else None for one in signatures]
        rows.append(_filled(guessed, real))
    unmeasured = tuple(index for index, one in enumerate(signatures) if one not in found)
    known = [found.get(one) for one in signatures]
    told = all(each is not None and each.peak_bytes is not None for each in known)
    return replace(
        guess,
        kind=device.kind,
        origin="measured",
        basis=_basis(program, guess, found, device),
        forward_seconds=rows[0],
        backward_seconds=rows[1],
        optimizer_seconds=rows[2],
        spread=tuple(each.spread if each else 0.0 for each in known),
        unmeasured=unmeasured,
        peak_bytes=tuple(each.peak_bytes or 0 for each in known if each) if told else (),
        saved_bytes=tuple(each.saved_bytes or 0 for each in known if each) if told else (),
    )


def _filled(guessed: Sequence[float], real: Sequence[float | None]) -> tuple[float, ...]:
    both = [(one, other) for one, other in zip(real, guessed, strict=True) if one is not None]
    thought = sum(other for _, other in both)
    scale = sum(one for one, _ in both) / thought if thought else 1.0
    return tuple(
        other * scale if one is None else one for one, other in zip(real, guessed, strict=True)
    )


def _basis(program: Program, guess: KindProfile, found: Mapping[str, LayerTime], device: Device) -> str:
    share = sum(share for signature, share in shares(program, guess).items() if signature in found)
    num_layers = len({layer.signature for layer in program.graph.layers})
    threads = f", {device.num_threads} thread{'s' * (device.num_threads > 1)}" if device.num_threads else ""
    text = (
        f"torch {torch.__version__}{threads}, {len(found)} of {num_layers} different layers measured one at a time, "
        f"{share:.0%} of the estimated time, median of {NUM_SAMPLES} runs"
    )
    left = f"; the others are estimated ({guess.basis}), scaled to the measured ones; profile again to go on"
    return text + left * (len(found) < num_layers)
