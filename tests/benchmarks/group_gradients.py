"""Gradients of groups of devices in float32, beside float32's own rounding.

``python -m tests.benchmarks.group_gradients [--json]``: the training cases of tests/running/group_ranks.py on gloo
ranks, one step each of 5 seeds.  Errors are relative to the largest element of a gradient in float64 (1 % of the
largest of all, where it is smaller): of the ranks against one process in float32, of the ranks against float64, and,
the baseline, of one process in float32 against float64.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path

from tabulate import tabulate

from autopart.running import DistributedPipeline
from tests.running.forked import fork_worlds, largest
from tests.running.group_ranks import CASES, SHARE, Case, loss_of, make_group_plan, shares, stepped, traced, twin_of
from tests.running.groupmodels import tokens_of

CHOSEN = {
    world: tuple(case for case in cases if case.training and case.codec == "none" and case.optimizer == "none")
    for world, cases in CASES.items()
}
NUM_SEEDS = 5
KINDS = ("ranks_one", "ranks_exact", "one_exact")


def figures_of(case: Case, rank: int) -> dict[str, float]:
    """The largest errors among this rank's gradients, of all seeds."""
    each = [errors_of(case, rank, seed) for seed in range(NUM_SEEDS)]
    return {kind: max(errors[kind] for errors in each) for kind in KINDS}


def errors_of(case: Case, rank: int, seed: int) -> dict[str, float]:
    """The largest errors among this rank's gradients; weights and batch follow from the seed."""
    plan, twin = make_group_plan(traced(case.model, True), case), twin_of(case.model, seed)
    program = traced(case.model, True, shares(case)[rank])
    program.module.load_state_dict(twin.state_dict())
    program.module.zero_grad()
    batch = tuple(tokens_of(plan.job.batch, 2 * seed + each) for each in range(2))
    pipeline = DistributedPipeline(program, plan, rank, loss_fn=loss_of)
    pipeline.step(batch[0], target=batch[1])
    exact = copy.deepcopy(twin).double()
    for model in (twin, exact):
        stepped(model, [batch], "none")
    ones, exacts = (dict(model.named_parameters(remove_duplicate=False)) for model in (twin, exact))
    least = 1e-2 * max(largest(weight.grad) for weight in exacts.values())
    found = dict.fromkeys(KINDS, 0.0)
    for name, gradient in pipeline.whole_gradients().items():
        one, true = ones[name].grad, exacts[name].grad
        assert one is not None and true is not None
        scale = max(largest(true), least)
        errors = (gradient - one, gradient.double() - true, one.double() - true)
        found = {kind: max(found[kind], largest(error) / scale) for kind, error in zip(KINDS, errors, strict=True)}
    return found


def main() -> None:
    """Runs all cases and prints the worst of every kind of group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for cases in CHOSEN.values():
        for case in cases:
            for num_samples in {SHARE, *shares(case)}:
                traced(case.model, True, num_samples)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        fork_worlds(directory, CHOSEN, figures_of)
        files = {world: [json.loads((directory / f"{world}.{rank}.json").read_text()) for rank in range(world)]
                 for world in CHOSEN}  # fmt: skip
    rows = []
    for world, cases in CHOSEN.items():
        for case in cases:
            ranks = [each[case.name] for each in files[world]]
            rows.append({"case": case.name} | {kind: max(each[kind] for each in ranks) for kind in KINDS})
    worst = {"case": "worst"} | {kind: max(row[kind] for row in rows) for kind in KINDS}
    if options.json:
        print(json.dumps([*rows, worst]))
    else:
        print(tabulate([*rows, worst], headers="keys", floatfmt=".2g"))


if __name__ == "__main__":
    main()
