"""What running costs and keeps of its promises, as ratios against a baseline in the same run.

    python -m tests.benchmarks.running [--json] [--quick] [CASE ...]

========== ============================================================================================ =============
case       what                                                                                         goal
========== ============================================================================================ =============
split      CPU time of ``autopart.split`` on two devices / the same split written by hand; same bits    1.02
local      CPU time of ``autopart.pipeline`` in one process / the same loop written by hand             reported
pipeline   throughput of two processes / the unsplit model in one, 16 micro-batches                     1.7
simulator  |step / simulated step - 1|, 14 set-ups of 2 to 4 devices, speeds 1:1 to 1:4, slow links,
           skips, two schedules; every stage takes the plan's own times                                 0.05 (median)
throttled  the same under real CPU quotas, times from the plan's profile                                0.15 (median)
gain       measured gain of the planned over the even split / the predicted gain                        0.95 ... 1.05
slow-link  100 Mbit/s between two network namespaces: throughput / that of torch's 1F1B uncompressed    1.6, int8 1.7
========== ============================================================================================ =============

``split`` and ``local`` are in CPU seconds and mean something on a busy machine; ``simulator`` sleeps most of the time
and tolerates one; the others need idle cores, so the load average is printed with them.  ``slow-link`` needs rights for
``ip netns`` and ``tc``; without them it is skipped with a word, as ``throttled`` is without a writable control group.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from torch.nn import functional

import autopart
from autopart import api, running
from autopart.modelsource import load
from autopart.schema.plan import Plan
from autopart.splitting import SplitModule, StagePlacement
from autopart.verbs import tracer_for
from tests.benchmarks import plaingpt, rehearsals, slowlink

GPT = str(Path(plaingpt.__file__))
GPT2 = str(Path(__file__).parents[2] / "examples" / "gpt2.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure."""

    case: str
    what: str
    value: float
    goal: str
    least: float
    most: float
    remark: str


def _row(case: str, what: str, values: Sequence[float], goal: str, remark: str = "") -> Row:
    return Row(
        case=case, what=what, value=statistics.median(values), goal=goal, least=min(values), most=max(values),
        remark=remark,
    )


def cpu_ratio(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> list[float]:
    """CPU seconds of ours / of theirs, pair by pair, the first of a pair in turn."""

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    ours(), theirs()
    ratios = []
    for index in range(repeats):
        if index % 2:
            one, other = seconds(ours), seconds(theirs)
        else:
            other, one = seconds(theirs), seconds(ours)
        ratios.append(one / other)
    return ratios


class ByHand(nn.Module):
    """PlainGPT on two devices, as people write it: first half here, second half there."""

    def __init__(self, model: plaingpt.PlainGPT, first: torch.device, second: torch.device) -> None:
        super().__init__()
        self.model, self.first, self.second = model, first, second
        self.middle = plaingpt.BLOCKS // 2

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits."""
        tokens = tokens.to(self.first)
        x = self.model.tokens(tokens) + self.model.places(torch.arange(tokens.shape[1], device=self.first))
        for block in self.model.blocks[: self.middle]:
            x = block(x)
        x = x.to(self.second)
        for block in self.model.blocks[self.middle :]:
            x = block(x)
        out: torch.Tensor = self.model.head(self.model.norm(x))
        return out


def split_case(quick: bool) -> list[Row]:
    """The split module and the pipeline of one process, beside what people write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, cpu = plaingpt.PlainGPT(), torch.device("cpu")
    tokens = torch.randint(plaingpt.VOCABULARY, (2, 64))
    middle = f"blocks.{plaingpt.BLOCKS // 2}"
    program = api.trace(model, (tokens,), training=True)
    names = [layer.name for layer in program.graph.layers]
    edge = next(index for index, name in enumerate(names) if name.startswith(middle))
    stages = [StagePlacement(layers=tuple(part), device=cpu) for part in (names[:edge], names[edge:])]
    split, hand = SplitModule(model, stages, tracer_for(())), ByHand(model, cpu, cpu)
    gradients = []

    def train(module: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(module(tokens).flatten(0, 1), tokens.flatten())
        torch.autograd.backward(loss)

    def infer(module: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = module(tokens)
        return output

    for module in (split, hand):
        train(module)
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    bits = all(torch.equal(*pair) for pair in zip(*gradients, strict=True)) and torch.equal(infer(split), infer(hand))
    repeats = 4 if quick else 16
    return [
        _row("split", f"{what}, split / by hand", cpu_ratio(partial(work, split), partial(work, hand), repeats),
             "<= 1.02", "same bits" if bits else "OTHER BITS")
        for what, work in (("training step", train), ("inference", infer))
    ]  # fmt: skip


def local_case(quick: bool) -> list[Row]:
    """The pipeline in one process beside a loop over micro-batches with the same two halves."""
    torch.set_num_threads(1)
    model = plaingpt.PlainGPT()
    tokens, num_microbatches = torch.randint(plaingpt.VOCABULARY, (4, 64)), 4

    def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output.flatten(0, 1), target.flatten())

    plan = api.plan(
        model, (tokens,), devices="cpu:0,cpu:1", mode="train", optimizer="none", stages=2, schedule="1f1b",
        microbatches=num_microbatches, method="even", verify=False,
    )
    pipe = api.pipeline(model, (tokens,), plan=plan, loss_fn=loss_of, verify=False)

    def by_hand() -> None:
        for chunk in tokens.chunk(num_microbatches):
            torch.autograd.backward(loss_of(model(chunk), chunk) / num_microbatches)

    ratios = cpu_ratio(lambda: pipe.step(tokens, target=tokens), by_hand, 4 if quick else 12)
    return [_row("local", "training step, pipeline / loop by hand", ratios, "reported")]


def pipeline_case(quick: bool) -> list[Row]:
    """Two processes against one, 16 micro-batches of 384 rows: 256 are too few to keep a core busy."""
    plan = api.plan_source(
        load(GPT), devices="cpu:0,cpu:1", microbatches=16, batch=48, stages=2, verify=False
    )
    found = api.run_source(plan, GPT, steps=2 if quick else 6, layers=False)
    assert found.gain is not None, found.single_skipped_because
    assert found.single is not None
    ratios = [one / two for one, two in zip(found.single.step_seconds, found.step_seconds, strict=True)]
    predicted = found.median_step_seconds / found.predicted_step_seconds - 1
    return [_row("pipeline", "throughput, two processes / one", ratios, ">= 1.7",
                 f"step {predicted:+.1%} of the predicted, {found.core_share:.0%} of a core")]  # fmt: skip


def gain_case(quick: bool) -> list[Row]:
    """GPT on a fast and a slow device: the planned over the even split."""
    plans: list[Plan] = [
        api.plan_source(load(GPT), devices="cpu:0@0.4,cpu:1@0.1", microbatches=8, batch=8, stages=2, method=method,
                        verify=False)
        for method in ("optimal", "even")
    ]  # fmt: skip
    rows = []
    for throttle in ("plan", "sleep"):
        best, even = (
            api.run_source(plan, GPT, steps=1 if quick else 3, single=False, layers=False, throttle=throttle)
            for plan in plans
        )
        predicted = even.predicted_step_seconds / best.predicted_step_seconds
        gain = even.median_step_seconds / best.median_step_seconds
        how = "the plan's times" if throttle == "plan" else "own CPU times"
        rows.append(_row("gain", f"measured / predicted gain over even, {how}", [gain / predicted],
                         "0.95 ... 1.05", f"predicted {predicted:.2f}x, measured {gain:.2f}x"))
    return rows


def simulator_case(quick: bool) -> list[Row]:
    """Rehearsals whose stages take the plan's times."""
    return _rehearsed("simulator", "plan", "<= 0.05", quick)


def throttled_case(quick: bool) -> list[Row]:
    """Rehearsals under the kernel's quotas."""
    if running.find_quota_root() is None:
        return [_skipped("throttled", "no control group with CPU quotas that this user may write to")]
    return _rehearsed("throttled", "quota", "<= 0.15", quick)


def _rehearsed(case: str, throttle: running.Throttle, goal: str, quick: bool) -> list[Row]:
    setups = rehearsals.SETUPS[:: 5 if quick else 1 if throttle == "plan" else 3]
    found = []
    for setup in setups:
        found.append(rehearsals.rehearse(setup, throttle, steps=1 if quick else 3))
        one = found[-1]
        seconds = f"{one.predicted_seconds:.3f} s simulated, {one.measured_seconds:.3f} s"
        print(f"{case}: {setup.name}: {seconds}", file=sys.stderr, flush=True)
    errors = [abs(each.measured_seconds / each.predicted_seconds - 1) for each in found]
    each = [
        _row(case, one.setup.name, [error], "",
             f"{one.predicted_seconds:.3f} s, {one.measured_seconds:.3f} s; {one.note}")
        for one, error in zip(found, errors, strict=True)
    ]  # fmt: skip
    return [*each, _row(case, f"|step / simulated - 1|, {len(found)} set-ups", errors, goal)]


def slow_link_case(quick: bool) -> list[Row]:
    """Stock 1F1B, receives posted early with a deeper warm-up, and codecs, at 100 Mbit/s; see slowlink.py."""
    if reason := slowlink.why_not(slowlink.RATE):
        return [_skipped("slow-link", reason)]
    seconds = slowlink.measure(steps=2 if quick else 8)
    base = statistics.median(seconds[slowlink.BASELINE])
    return [
        _row("slow-link", f"1f1b uncompressed / {each.name}", [base / step for step in taken],
             f">= {each.goal}" if each.goal else "reported", f"{statistics.median(taken):.3f} s a step")
        for each, taken in seconds.items()
    ]  # fmt: skip


def _skipped(case: str, reason: str) -> Row:
    return Row(case=case, what="skipped", value=float("nan"), goal="", least=float("nan"), most=float("nan"),
               remark=reason)  # fmt: skip


CASES: dict[str, Callable[[bool], list[Row]]] = {
    "split": split_case, "local": local_case, "pipeline": pipeline_case, "simulator": simulator_case,
    "throttled": throttled_case, "gain": gain_case, "slow-link": slow_link_case,
}  # fmt: skip


def main() -> None:
    """Prints the figures, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help=", ".join(CASES))
    parser.add_argument("--quick", action="store_true", help="few repeats and set-ups")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    load_average = os.getloadavg()
    rows = [row for name in options.cases or CASES for row in CASES[name](options.quick)]
    versions = (f"torch {torch.__version__}", f"autopart {autopart.__version__}")
    if options.json:
        print(json.dumps({"load_average": load_average, "versions": versions, "rows": [asdict(row) for row in rows]}))
        return
    print(tabulate([asdict(row) for row in rows], headers="keys", floatfmt=".3f"))
    print(f"load average before {', '.join(f'{each:.1f}' for each in load_average)}; {', '.join(versions)}")


if __name__ == "__main__":
    main()
