from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings

from autopart.planning.costing.memory import Rules, StageFacts, memory_terms, num_in_flight, stage_facts, stage_memory
from autopart.planning.costing.tables import facts_table
from autopart.schema.device import Cluster, Overhead
from autopart.schema.graph import Loss
from autopart.schema.job import Job, Optimizer, ScheduleName
from autopart.schema.problem import Candidate
from tests.planning.problems import chain, device, problems


def rules(schedule: ScheduleName = "gpipe", num: int = 4, optimizer: Optimizer = "adamw", *, train: bool) -> Rules:
    return Rules(training=train, schedule=schedule, num_microbatches=num, optimizer=optimizer if train else "none")


def test_inference_middle_stage() -> None:
    """Weights, one layer's peak, four receive buffers, and four outputs held by fwd_cache, one of them in the peak."""
    graph = chain(6, weight_bytes=1000, value_bytes=100, peak_bytes=250)
    memory = stage_memory(stage_facts(graph, 2, 4), rules(train=False), 4)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (2000, 0, 0)
    assert (memory.activations, memory.workspace, memory.communication) == (400, 250, 400)
    assert (memory.not_at_once, memory.total) == (100, 2950)


def test_the_last_stage_keeps_all_outputs_and_does_not_join_them() -> None:
    graph = chain(6, weight_bytes=1000, value_bytes=100, peak_bytes=250)
    memory = stage_memory(stage_facts(graph, 4, 6), rules(train=False), 4)
    assert (memory.activations, memory.loss, memory.communication) == (0, 400, 400)


def test_values_that_pass_by_a_layer_are_alive_beside_it() -> None:
    graph = chain(5, value_bytes=100, peak_bytes=250, skips=((0, 3, 7), (1, 3, 11)))
    assert stage_facts(graph, 0, 5).alive == 250 + 7 + 11
    assert stage_facts(graph, 0, 2).alive == 250 + 7
    assert stage_facts(graph, 3, 5).alive == 250


def test_training_middle_stage_gpipe_and_1f1b() -> None:
    """Layers whose backward was not run are taken to need 2 x 250, and the gradient of their weight."""
    graph = chain(6, weight_bytes=1000, value_bytes=100, peak_bytes=250, saved_bytes=30, training=True)
    facts = stage_facts(graph, 2, 4)
    gpipe = stage_memory(facts, rules(train=True), 4)
    assert (gpipe.parameters, gpipe.gradients, gpipe.optimizer) == (2000, 2000, 4000)
    assert gpipe.activations == 4 * (2 * 30 + 100)
    assert gpipe.communication == 400 + 400 + 400
    assert gpipe.workspace == 2000  # the denominators of all weights
    assert gpipe.total == 2000 + 4000 + 1200 + 2000 + 2000  # in the optimizer, the activations are gone
    sgd = stage_memory(facts, rules(optimizer="sgd", train=True), 4)
    # at the first layer's backward: its saved bytes, its need, both gradients; the other layer's are freed
    assert sgd.total == 2000 + 1200 + 3 * 160 + (30 + 500 + 2000) + 100
    in_flight = num_in_flight(rules("1f1b", optimizer="sgd", train=True), 3, 1)
    f1b1 = stage_memory(facts, rules("1f1b", optimizer="sgd", train=True), in_flight)
    assert f1b1.activations == 2 * (2 * 30 + 100)
    assert f1b1.communication == 400 + 400 + 200
    assert f1b1.total == 2000 + 1000 + 2 * 160 + (500 + 2000)  # the next forward meets all gradients


def test_gradients_come_as_activations_go() -> None:
    """Four layers of equal weights and activations: the peak is not their sum."""
    graph = chain(4, weight_bytes=1000, value_bytes=0, saved_bytes=1000, training=True)
    known = replace(graph, loss=Loss(saved_bytes=0, backward_bytes=0), layers=tuple(
        replace(layer, backward_bytes=10, first_backward_bytes=1010) for layer in graph.layers
    ))
    memory = stage_memory(stage_facts(known, 0, 4), rules(num=1, optimizer="sgd", train=True), 1)
    assert memory.total == 4000 + 5010
    assert memory.not_at_once == 4000 + 4000 + 4000 + 10 - memory.total


def test_gradients_that_nobody_clears_are_there_from_the_start() -> None:
    graph = chain(4, weight_bytes=1000, saved_bytes=1000, training=True)
    facts = stage_facts(graph, 1, 3)
    cleared, kept = (stage_memory(facts, rules(num=1, optimizer=name, train=True), 1) for name in ("sgd", "none"))
    assert kept.total - cleared.total == 1000


def test_on_processors_weights_are_updated_one_by_one() -> None:
    graph = chain(4, weight_bytes=(10, 1000, 500, 10), training=True, value_bytes=0, peak_bytes=0)
    facts = stage_facts(graph, 0, 4)
    together = rules(num=1, train=True)
    alone = replace(together, multi_tensor=False)
    states = 3 * 1520 + 1520
    assert (stage_memory(facts, together, 1).total, stage_memory(facts, alone, 1).total) == (
        states + 1520, states + 2 * 1000 + 500
    )
    processors = Cluster(devices=(replace(device("a"), backend="cpu"),))
    job = Job(mode="train", batch=1, optimizer="adamw")
    assert Rules.of(job, "gpipe", 1, Cluster(devices=(device("a"),))).multi_tensor
    assert not Rules.of(job, "gpipe", 1, processors).multi_tensor


def test_states_and_master_weights_of_optimizers() -> None:
    graph = chain(2, weight_bytes=1000, training=True)
    half = replace(graph, weights=(replace(graph.weights[0], bytes=500, dtype="bfloat16"), graph.weights[1]))
    facts = stage_facts(half, 0, 2)

    def states(optimizer: Optimizer, *, master: bool = False) -> int:
        some = replace(rules(optimizer=optimizer, train=True), master_weights=master)
        return stage_memory(facts, some, 4).optimizer

    assert [states(name) for name in ("sgd", "momentum", "adam", "adamw")] == [0, 1500, 3000, 3000]
    assert [states(name, master=True) for name in ("sgd", "momentum", "adamw")] == [1000, 2000 + 1000, 4000 + 1000]


def test_a_loss_is_a_layer_after_the_last() -> None:
    graph = chain(4, weight_bytes=0, value_bytes=100, saved_bytes=30, peak_bytes=1, training=True)
    known = replace(graph, loss=Loss(saved_bytes=70, backward_bytes=200))
    memory = stage_memory(stage_facts(known, 2, 4), rules(num=1, optimizer="sgd", train=True), 1)
    assert memory.loss == 100 + 70
    assert memory.workspace == 200
    assert memory.total == 100 + 100 + 2 * 30 + 170 + 200  # received, its gradient, saved, loss, the loss's backward
    unknown = stage_memory(stage_facts(graph, 2, 4), rules(num=1, optimizer="sgd", train=True), 1)
    assert (unknown.loss, unknown.workspace) == (100 + 100, 200)  # as of a cross-entropy


def test_what_comes_in_and_is_saved_lies_in_its_receive_buffer() -> None:
    graph = chain(4, value_bytes=100, saved_bytes=130, training=True)
    saved = replace(graph, values=tuple(replace(value, saved_by=value.producer + 1) for value in graph.values[:-1])
                    + graph.values[-1:])
    facts = stage_facts(saved, 1, 3)
    assert (facts.saved, facts.kept) == (2 * 130 - 100, 100)
    own = replace(graph, values=tuple(replace(value, saved_by=value.producer) for value in graph.values if
                                      value.producer >= 0))
    facts = stage_facts(own, 1, 3)
    assert (facts.saved, facts.kept) == (2 * 130, 0)


def test_a_tied_weights_gradient_is_held_until_its_first_user_is_through() -> None:
    graph = chain(4, weight_bytes=(1000, 10, 10, 0), value_bytes=0, peak_bytes=0, tied=(0, 3), training=True)
    known = replace(graph, layers=tuple(replace(layer, backward_bytes=1, first_backward_bytes=1)
                                        for layer in graph.layers))
    facts = stage_facts(known, 0, 4)
    assert facts.later_pass == 2 * 1000 + 1  # the sum of both is a tensor of its own
    assert stage_facts(known, 1, 4).later_pass == 1


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


ALLOCATOR = Overhead(context_bytes=10**6, segment_bytes=1000, fragmentation_permille=30)


def test_what_is_allocated_anew_leaves_gaps_and_what_stays_does_not() -> None:
    graph = chain(6, weight_bytes=1000, value_bytes=100, peak_bytes=250)
    plain = rules(train=False)
    before = stage_memory(stage_facts(graph, 2, 4), plain, 4)
    after = stage_memory(
        stage_facts(graph, 2, 4), replace(plain, fragmentation_permille=30, segment_bytes=1000), 4
    )
    # four outputs held and the rest of a layer's peak: 550 of the 2,950 bytes; weights and receive buffers stay
    assert after.fragmentation == 1000 + math.ceil(0.03 * 550)
    assert after.total == before.total + after.fragmentation


def test_the_allocators_reserve_is_that_of_the_worst_device() -> None:
    devices = (device("a"), replace(device("b"), overhead=ALLOCATOR))
    found = Rules.of(Job(batch=1), "gpipe", 1, Cluster(devices=devices))
    assert (found.fragmentation_permille, found.segment_bytes) == (30, 1000)
    assert Rules.of(Job(batch=1), "gpipe", 1, Cluster(devices=devices[:1])).fragmentation_permille == 0


@settings(max_examples=30, deadline=None)
@given(problems())
def test_tables_and_stages_agree_on_the_reserve(problem: tuple[Candidate, Cluster, Job]) -> None:
    candidate, _, job = problem
    some = replace(
        Rules.of(job, "gpipe", candidate.num_microbatches), fragmentation_permille=37, segment_bytes=11
    )
    graph, num = candidate.graph, candidate.num_microbatches
    terms = memory_terms(facts_table(graph, (0, *graph.legal_cuts, len(graph.layers))), some)
    whole = stage_memory(stage_facts(graph, 0, len(graph.layers)), some, num)
    assert terms.total(num)[0, -1] == whole.total
    added = terms.fixed() + num * terms.per_microbatch  # as the rule of 1F1B does: never less
    assert added[0, -1] >= replace(terms, update=0 * terms.update).total(num)[0, -1]
