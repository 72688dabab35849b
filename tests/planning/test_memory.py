from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings

from autopart.planning.memory import Rules, StageFacts, memory_terms, num_in_flight, stage_facts, stage_memory
from autopart.planning.tables import facts_table
from autopart.schema.device import Cluster
from autopart.schema.job import Job, Optimizer, ScheduleName
from autopart.schema.problem import Candidate
from tests.planning.problems import chain, problems


def rules(schedule: ScheduleName = "gpipe", num: int = 4, optimizer: Optimizer = "adamw", *, train: bool) -> Rules:
    return Rules(training=train, schedule=schedule, num_microbatches=num, optimizer=optimizer if train else "none")


def test_inference_middle_stage() -> None:
    """Weights, one layer's peak, four receive buffers, and four outputs held by fwd_cache."""
    graph = chain(6, weight_bytes=1000, value_bytes=100, peak_bytes=250)
    memory = stage_memory(stage_facts(graph, 2, 4), rules(train=False), 4)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (2000, 0, 0)
    assert (memory.activations, memory.workspace, memory.communication) == (400, 250, 400)
    assert memory.total == 3050


def test_the_last_stage_keeps_all_outputs_and_joins_them() -> None:
    graph = chain(6, weight_bytes=1000, value_bytes=100, peak_bytes=250)
    memory = stage_memory(stage_facts(graph, 4, 6), rules(train=False), 4)
    assert (memory.activations, memory.communication) == (0, 400 + 2 * 400)


def test_training_middle_stage_gpipe_and_1f1b() -> None:
    graph = chain(6, weight_bytes=1000, value_bytes=100, peak_bytes=250, saved_bytes=30, training=True)
    facts = stage_facts(graph, 2, 4)
    gpipe = stage_memory(facts, rules(train=True), 4)
    assert (gpipe.parameters, gpipe.gradients, gpipe.optimizer) == (2000, 2000, 4000)
    assert gpipe.activations == 4 * (2 * 30 + 100)
    assert gpipe.communication == 400 + 400 + 400
    assert gpipe.workspace == max(2 * 250 + 1000, 2000 - gpipe.activations)
    f1b1 = stage_memory(facts, rules("1f1b", train=True), num_in_flight(rules("1f1b", train=True), 3, 1))
    assert f1b1.activations == 2 * (2 * 30 + 100)
    assert f1b1.communication == 400 + 400 + 200


def test_a_tied_weight_counts_once_in_a_stage_and_once_per_stage() -> None:
    graph = chain(4, weight_bytes=1000, tied=(0, 3))
    assert stage_facts(graph, 0, 4).weights == 4000
    assert stage_facts(graph, 0, 2).weights + stage_facts(graph, 2, 4).weights == 5000


def test_relayed_values_are_received_but_not_kept_twice() -> None:
    graph = chain(4, value_bytes=100, skips=((0, 3, 7),))
    facts = stage_facts(graph, 1, 2)
    assert (facts.incoming, facts.outgoing, facts.kept) == (107, 107, 100)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("gpipe", (4, 4, 4)), ("1f1b", (3, 2, 1))]
)
def test_micro_batches_in_flight(schedule: ScheduleName, expected: tuple[int, ...]) -> None:
    assert tuple(num_in_flight(rules(schedule, train=True), 3, index) for index in range(3)) == expected


@settings(max_examples=50, deadline=None)
@given(problems())
def test_the_tables_say_what_each_stage_says(problem: tuple[Candidate, Cluster, Job]) -> None:
    chosen, _, job = problem
    graph = chosen.graph
    boundaries = (0, *graph.legal_cuts, len(graph.layers))
    table = facts_table(graph, boundaries)
    some_rules = Rules.of(job, "1f1b" if job.mode == "train" else "gpipe", chosen.num_microbatches)
    totals = memory_terms(table, some_rules).total(1)
    for a in range(len(boundaries)):
        for b in range(a + 1, len(boundaries)):
            facts = stage_facts(graph, boundaries[a], boundaries[b])
            for field in fields(StageFacts):
                assert np.asarray(getattr(table, field.name))[a, b] == getattr(facts, field.name), field.name
            assert int(totals[a, b]) == stage_memory(facts, some_rules, 1).total
