"""The fault drill: trainings that lose a rank, a device's memory, the disk, the link or the speed of a device.

    python -m tests.benchmarks.faults [--kills N] [--only kill,hang,...] [--json]

A model with a skip and a tied weight trains on two gloo ranks.  Each row is a training with one fault, compared with an
undisturbed one: ``kill`` sends SIGKILL to a random rank at a random step (goal: the same losses, and never longer than
60 s from the kill to the next step); ``kill-return``, a quarter as often, the same with --returns 1, so that the same
devices go on; ``stop`` is SIGSTOP; the others are faults inside of the last rank (drillmodel.py).  What is left after a
kill is planned by the real planner.  ``disk`` is the only one that has to end with an error, and with its checkpoints
whole.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch

from autopart.errors import RankError
from autopart.modelsource import load, with_batch
from autopart.schema.plan import Plan
from autopart.schema.training import Recipe, Training
from autopart.tracing import trace
from autopart.training import Elastic, Order, load_checkpoint, train
from tests.benchmarks.drillmodel import BATCH, NUM_MICROBATCHES
from tests.running.handmade import make_plan

SOURCE = str(Path(__file__).with_name("drillmodel.py"))
RECIPE = Recipe(steps=30, optimizer="adamw", learning_rate=0.01, clip=1.0, checkpoint_every=5)
CAP_BYTES = 2**26
HANG_SECONDS = 10.0
GOAL_SECONDS, GOAL_DIFFERENCE = 60.0, 1e-5
FAULTS = ("kill", "kill-return", "stop", "hang", "memory", "link", "slow", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training with a fault."""

    fault: str
    rank: int
    step: int
    outcome: str
    failed_after_step: int
    resumed_from_step: int
    recovery_seconds: float
    """from the last step before the failure to the first after it"""
    difference: float
    """the largest of the losses' relative differences from the undisturbed training's"""
    good: bool


class Signaller(threading.Thread):
    """Sends a signal to a rank in the middle of a step, from outside."""

    def __init__(self, place: Path, metrics: Path, rank: int, step: int, number: signal.Signals) -> None:
        super().__init__(daemon=True)
        self._place, self._metrics, self._rank, self._step, self._number = place, metrics, rank, step, number
        self.sent = False

    def run(self) -> None:
        """Waits for the step before, then sends."""
        while not (self._metrics.exists() and self._metrics.read_bytes().count(b"\n") >= self._step - 1):
            time.sleep(0.002)
        (path,) = self._place.glob(f"autopart-train-*/attempt0/rank{self._rank}.pid")
        os.kill(int(path.read_text()), self._number)
        self.sent = True


def drill_plan() -> Plan:
    """Two stages on two emulated devices with caps of their own."""
    piece = with_batch(load(SOURCE), BATCH // NUM_MICROBATCHES)
    graph = trace(piece.model, piece.args, training=True).graph
    middle = sorted(graph.legal_cuts)[len(graph.legal_cuts) // 2]
    plan = make_plan(
        graph, (middle,), num_microbatches=NUM_MICROBATCHES, mode="train", schedule="1f1b", optimizer="adamw"
    )
    stages = tuple(replace(each, forward_seconds=0.002, backward_seconds=0.002) for each in plan.stages)
    capped = tuple(replace(each, memory_bytes=CAP_BYTES, uncapped_bytes=2**30) for each in plan.cluster.devices)
    return replace(plan, stages=stages, cluster=replace(plan.cluster, devices=capped))


def trained(plan: Plan, place: Path, elastic: Elastic | None, steps: dict[float, int]) -> Training:
    """One training; ``steps`` is filled with when each step was told."""
    order = Order(
        source=SOURCE, data=f"{SOURCE}:data", recipe=RECIPE, checkpoint_directory=place / "kept",
        hang_seconds=HANG_SECONDS, group_timeout_seconds=120.0,
    )  # fmt: skip

    def told(what: str, done: int, total: int) -> None:
        steps[time.monotonic()] = done

    with mock.patch.object(tempfile, "tempdir", str(place)):
        return train(plan, order, elastic=elastic, progress=told)


def disturbed(fault: str, plan: Plan, expected: Training, place: Path, rank: int, step: int) -> Row:
    """One training with a fault, against the undisturbed one."""
    drill = f"{fault}:{step}:{place / 'marker'}" if fault not in ("kill", "kill-return", "stop") else ""
    number = signal.SIGSTOP if fault == "stop" else signal.SIGKILL
    sender = None if drill else Signaller(place, place / "kept" / "metrics.jsonl", rank, step, number)
    steps: dict[float, int] = {}
    found: Training | None = None
    outcome = ""
    with mock.patch.dict(os.environ, {"AUTOPART_DRILL": drill}):
        if sender is not None:
            sender.start()
        try:
            found = trained(plan, place, Elastic(returns=int(fault == "kill-return")), steps)
        except RankError as error:
            outcome = f"exit {error.exit_code}: {error}"
    if found is None:
        return Row(
            fault=fault, rank=rank, step=step, outcome=outcome, failed_after_step=max(steps.values(), default=0),
            resumed_from_step=0, recovery_seconds=0.0, difference=0.0, good=fault == "disk" and disk_is_good(place),
        )  # fmt: skip
    return _row(fault, rank, step, found, expected, steps)


def _row(
    fault: str, rank: int, step: int, found: Training, expected: Training, steps: dict[float, int]
) -> Row:
    pairs = zip(found.losses, expected.losses, strict=True)
    difference = max(abs(a - b) / abs(b) for a, b in pairs if a is not None and b)
    recovery = found.recoveries[0] if found.recoveries else None
    times = list(steps)
    gap = max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)
    good = difference <= GOAL_DIFFERENCE and gap <= GOAL_SECONDS and recovery is not None
    outcome = f"{recovery.cause}: {recovery.action}" if recovery else "nothing failed"
    return Row(
        fault=fault, rank=rank, step=step, outcome=outcome,
        failed_after_step=recovery.failed_after_step if recovery else 0,
        resumed_from_step=recovery.resumed_from_step if recovery else 0, recovery_seconds=gap, difference=difference,
        good=good and len(found.losses) == RECIPE.steps,
    )  # fmt: skip


def disk_is_good(place: Path) -> bool:
    """Whether what is left after a failed checkpoint is one whole checkpoint, and nothing half-written."""
    left = sorted(path.name for path in (place / "kept").iterdir() if path.name != "metrics.jsonl")
    model = load(SOURCE).model
    return all(name.startswith("step-") for name in left) and load_checkpoint(place / "kept", model).step > 0


def drill(faults: tuple[str, ...], num_kills: int, show: Callable[[Row], None], seed: int = 0) -> tuple[Row, ...]:
    """All trainings: ``kill`` as often as asked for, ``kill-return`` a quarter as often, the others once."""
    chance, rows = random.Random(seed), []
    plan = drill_plan()
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch:
        place = Path(scratch)
        (place / "undisturbed").mkdir()
        expected = trained(plan, place / "undisturbed", None, {})
        for fault in faults:
            for number in range({"kill": num_kills, "kill-return": -(-num_kills // 4)}.get(fault, 1)):
                here = place / f"{fault}{number}"
                here.mkdir()
                rank, step = chance.randrange(2), chance.randrange(2, RECIPE.steps)
                if fault in ("slow", "disk"):
                    step = 7  # early enough to be noticed, late enough for a checkpoint to be there
                rows.append(disturbed(fault, plan, expected, here, rank, step))
                show(rows[-1])
    return tuple(rows)


def main() -> None:
    """Prints the rows, as text or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20, help="trainings with a kill")
    parser.add_argument("--only", default=",".join(FAULTS), help="comma list of faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)

    def show(row: Row) -> None:
        if not options.json:
            print(
                f"{'good' if row.good else 'BAD ':4} {row.fault:11} rank {row.rank} step {row.step:2}: failed after "
                f"{row.failed_after_step:2}, on from {row.resumed_from_step:2}, {row.recovery_seconds:5.1f} s, "
                f"losses differ by {row.difference:.1e}; {row.outcome}", flush=True,
            )

    rows = drill(tuple(options.only.split(",")), options.kills, show, options.seed)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(f"{sum(row.good for row in rows)} of {len(rows)} good, torch {torch.__version__}")


if __name__ == "__main__":
    main()
