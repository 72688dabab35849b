"""Peak memory of a stage, term by term, as torch.distributed.pipelining really spends it.

Read off torch/distributed/pipelining/stage.py and schedules.py (torch 2.13):

* ``_setup_forward_recv_info`` and ``_create_grad_recv_info`` allocate one receive buffer per micro-batch, for the
  incoming values and (in training) for the incoming gradients, and keep them;
* ``fwd_cache`` keeps each micro-batch's outputs until its backward, in inference until the next step;
* the last stage keeps the outputs of all micro-batches in ``output_chunks`` and joins them into one more copy;
* gradients sent upstream live until their send is waited for: all of them in GPipe, two in 1F1B.

Every function takes the facts of a stage as plain integers or as arrays of them, so that the solver's tables and the
check of a finished plan share one formula but not one computation of the facts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from autopart.schema.graph import Graph, Value
from autopart.schema.job import Job, Optimizer, ScheduleName
from autopart.schema.plan import Memory

__all__ = ["MemoryTerms", "Rules", "StageFacts", "memory_terms", "num_in_flight", "stage_facts", "stage_memory"]

Bytes = Any
"""an int or an int64 array: the formulas below hold for both"""

NUM_OPTIMIZER_STATES: dict[Optimizer, int] = {"adamw": 2, "adam": 2, "sgd": 0, "none": 0}
"""copies of the trainable weights that torch.optim keeps, in their own data type (sgd without momentum)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the memory of every stage depends on, beside the stage."""

    training: bool
    schedule: ScheduleName
    num_microbatches: int
    optimizer: Optimizer

    @staticmethod
    def of(job: Job, schedule: ScheduleName, num_microbatches: int) -> Rules:
        """The rules of a job once schedule and micro-batches are chosen."""
        return Rules(
            training=job.mode == "train", schedule=schedule,
            num_microbatches=num_microbatches, optimizer=job.optimizer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """Bytes of layers first .. last - 1; those of values are for one micro-batch."""

    weights: Bytes
    trainable: Bytes
    largest_trainable: Bytes
    largest_tied: Bytes
    """of the trainable weights that more than one layer of the model uses"""
    saved: Bytes
    largest_peak: Bytes
    kept: Bytes
    """values produced here that cross the end of the stage"""
    incoming: Bytes
    incoming_gradient: Bytes
    """the differentiable part of ``incoming``"""
    outgoing: Bytes
    outgoing_gradient: Bytes
    is_first: Any
    is_last: Any
    inputs: Bytes = 0
    """what crosses the beginning of every layer, in all: kept instead of ``saved`` where stages recompute"""
    largest_saved: Bytes = 0
    """of one layer"""
    recomputed: Bytes = 0
    """``largest_saved`` where stages recompute: the activations of one layer come back at a time"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerms:
    """The terms of schema Memory; ``activations`` is ``per_microbatch`` times the micro-batches in flight."""

    parameters: Bytes
    gradients: Bytes
    optimizer: Bytes
    per_microbatch: Bytes
    workspace: Bytes
    update: Bytes
    """needed beside weights and optimizer state when the activations are gone: the optimizer's temporaries, or the
    buffer for a tied weight's gradient from the other stage"""
    communication: Bytes

    def fixed(self) -> Bytes:
        """Everything but the activations and the update."""
        return self.parameters + self.gradients + self.optimizer + self.workspace + self.communication

    def total(self, in_flight: Bytes) -> Bytes:
        """Peak with so many micro-batches in flight: the larger of computing and updating."""
        computing = self.per_microbatch * in_flight + self.workspace
        return self.fixed() - self.workspace + np.maximum(computing, self.update)


def num_in_flight(rules: Rules, num_stages: int, index: int) -> int:
    """Micro-batches whose activations a stage keeps at once (1F1B: min(M, S - s); ZB1P: min(M, S); else M)."""
    if rules.training and rules.schedule == "1f1b":
        return min(rules.num_microbatches, num_stages - index)
    if rules.training and rules.schedule == "zero-bubble":
        return min(rules.num_microbatches, num_stages)
    return rules.num_microbatches


def memory_terms(facts: StageFacts, rules: Rules) -> MemoryTerms:
    """The terms of one stage, or of many at once."""
    num = rules.num_microbatches
    last, inner = 1 * facts.is_last, 1 - 1 * facts.is_last
    received = num * facts.incoming + 2 * num * last * facts.outgoing
    zero = 0 * facts.weights
    if not rules.training:
        return MemoryTerms(
            parameters=facts.weights, gradients=zero, optimizer=zero, per_microbatch=facts.kept * inner,
            workspace=facts.largest_peak, update=zero, communication=received,
        )
    num_sent = num if rules.schedule == "gpipe" else min(num, 2)
    gradients = inner * num * facts.outgoing_gradient + (1 - 1 * facts.is_first) * num_sent * facts.incoming_gradient
    states = NUM_OPTIMIZER_STATES[rules.optimizer]
    # multi-tensor Adam holds the denominators of all weights at once (torch/optim/adamw.py, exp_avg_sq_sqrt)
    temporaries = facts.trainable if states else zero
    return MemoryTerms(
        parameters=facts.weights,
        gradients=facts.trainable,
        optimizer=states * facts.trainable,
        # the last stage's outputs are saved once more by the loss (log-softmax of the logits)
        per_microbatch=facts.saved + facts.kept * inner + facts.outgoing_gradient * last,
        # the gradients of a layer's values are as large as the values; a weight's new gradient is built, then added
        workspace=(
            2 * facts.largest_peak + facts.recomputed + (facts.largest_trainable if num > 1 else facts.largest_tied)
        ),
        update=np.maximum(temporaries, facts.largest_tied),
        communication=received + gradients,
    )


def stage_facts(graph: Graph, first: int, last: int) -> StageFacts:
    """The facts of layers first .. last - 1, by going through them."""
    layers = graph.layers[first:last]
    used = {index for layer in layers for index in layer.weights}
    trainable = {index for index in used if graph.weights[index].trainable and not graph.weights[index].is_buffer}
    num_users = Counter(index for layer in graph.layers for index in set(layer.weights))
    tied = {index for index in trainable if num_users[index] > 1}
    entering, leaving = graph.crossing(first), graph.crossing(last)
    return StageFacts(
        weights=sum(graph.weights[index].bytes for index in used),
        trainable=sum(graph.weights[index].bytes for index in trainable),
        largest_trainable=max((graph.weights[index].bytes for index in trainable), default=0),
        largest_tied=max((graph.weights[index].bytes for index in tied), default=0),
        saved=sum(layer.saved_bytes for layer in layers),
        largest_peak=max(layer.peak_bytes for layer in layers),
        kept=sum(value.bytes for value in leaving if value.producer >= first),
        incoming=sum(value.bytes for value in entering),
        incoming_gradient=sum(value.bytes for value in entering if value.differentiable),
        outgoing=sum(value.bytes for value in leaving),
        outgoing_gradient=sum(value.bytes for value in leaving if value.differentiable),
        is_first=first == 0,
        is_last=last == len(graph.layers),
        inputs=sum(value.bytes * _num_inside(value, first, last) for value in graph.values),
        largest_saved=max(layer.saved_bytes for layer in layers),
    )


def _num_inside(value: Value, first: int, last: int) -> int:
    """How many of the layers first .. last - 1 begin while the value is needed."""
    return max(0, min(last - 1, value.consumers[-1]) - max(first, value.producer + 1) + 1)


def stage_memory(facts: StageFacts, rules: Rules, in_flight: int) -> Memory:
    """Peak memory of one stage; ``workspace`` is what the larger of computing and updating needs beyond the rest."""
    terms = memory_terms(facts, rules)
    activations = int(terms.per_microbatch * in_flight)
    return Memory(
        parameters=int(terms.parameters),
        gradients=int(terms.gradients),
        optimizer=int(terms.optimizer),
        activations=activations,
        workspace=max(int(terms.workspace), int(terms.update) - activations),
        communication=int(terms.communication),
    )
