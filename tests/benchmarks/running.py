"""Throughput of a plan against one device, and of an optimal plan against an even one, on GPT-2 (124M), eval.

    python -m tests.benchmarks.running [--json] [--steps N] [--speed S]

Two emulated devices, batch 24 x 128 tokens.  First cpu:0,cpu:1 with 8 micro-batches: pipeline against the unsplit model
on one of them (goal: 1.5 times its throughput) and measured against predicted step time (goal: within 15 %).  Then
cpu:0,cpu:1@0.5: the optimal plan against the even one.  At full speed both cores have to be idle for the figures to
mean anything, so the load average is printed with them; ``--speed 0.25`` slows all devices down by that factor, and
their idle time then absorbs what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from autopart import api
from autopart.modelsource import load
from autopart.schema.measurement import Measurement

MODEL = str(Path(__file__).parents[2] / "examples" / "gpt2.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one call of this script found."""

    load_average: tuple[float, float, float]
    throughput_ratio: float
    """pipeline on two devices / unsplit model on one"""
    predicted_step_seconds: float
    measured_step_seconds: float
    prediction_error: float
    """measured / predicted - 1"""
    optimal_over_even: float
    """throughput of the optimal plan / of the even one, on a fast and a slow device"""
    predicted_optimal_over_even: float
    verdicts: tuple[str, ...]
    versions: tuple[str, ...]


def measure(devices: str, method: str, *, steps: int, single: bool, microbatches: int | None) -> Measurement:
    """Plans and runs GPT-2 on these devices."""
    plan = api.plan_source(load(MODEL), devices=devices, method=method, microbatches=microbatches)
    return api.run_source(plan, MODEL, steps=steps, single=single)


def run(steps: int, speed: float) -> Figures:
    """All figures; takes some minutes."""
    load_average = os.getloadavg()
    pair = measure(f"cpu:0@{speed},cpu:1@{speed}", "optimal", steps=steps, single=True, microbatches=8)
    assert pair.gain is not None, pair.verdict
    optimal, even = (
        measure(f"cpu:0@{speed},cpu:1@{speed / 2}", method, steps=steps, single=False, microbatches=8)
        for method in ("optimal", "even")
    )
    return Figures(
        load_average=load_average,
        throughput_ratio=1 + pair.gain,
        predicted_step_seconds=pair.predicted_step_seconds,
        measured_step_seconds=pair.median_step_seconds,
        prediction_error=pair.median_step_seconds / pair.predicted_step_seconds - 1,
        optimal_over_even=optimal.throughput_per_second / even.throughput_per_second,
        predicted_optimal_over_even=even.predicted_step_seconds / optimal.predicted_step_seconds,
        verdicts=(pair.verdict, optimal.verdict, even.verdict),
        versions=pair.versions,
    )


def main() -> None:
    """Prints the figures, as text or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each run")
    parser.add_argument("--speed", type=float, default=1.0, help="of the faster device")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    figures = run(options.steps, options.speed)
    if options.json:
        print(json.dumps(asdict(figures), indent=2))
        return
    for name, value in asdict(figures).items():
        print(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}")


if __name__ == "__main__":
    main()
