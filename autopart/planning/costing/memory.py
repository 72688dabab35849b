"""Peak memory of a stage, term by term, as torch.distributed.pipelining really spends it.

Read off torch/distributed/pipelining/stage.py and schedules.py (torch 2.13), and measured
(``python -m tests.benchmarks.memory``):

* ``_setup_forward_recv_info`` and ``_create_grad_recv_info`` allocate one receive buffer per micro-batch, for the
  incoming values and (in training) for the incoming gradients, and keep them;
* ``fwd_cache`` keeps each micro-batch's outputs until its backward, in inference until the next step; the last
  stage's are the model's, and in training its loss saves something of its own;
* gradients sent upstream live until their send is waited for: all of them in GPipe, two in 1F1B; what torch's runtime
  of interleaved and zero-bubble schedules sends, in both directions, lives to the end of the step;
* on devices with a caching allocator (``Device.overhead``) what every step allocates anew leaves gaps: a share of it,
  and the segments that are in part use, are a reserve;
* a weight's gradient comes to life in the first backward of a step (``zero_grad`` sets it to None), while what was
  saved is freed: the peak is where their sum is largest (``memorywalk``), or in the optimizer.

Every function takes the facts of a stage as plain integers or as arrays of them, so that the solver's tables and the
check of a finished plan share one formula but not one computation of the facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autopart.planning.costing.kvcache import layer_cache_bytes
from autopart.planning.costing.memorywalk import passes
from autopart.planning.costing.rerunning import held_from, rerun
from autopart.planning.costing.rules import Rules
from autopart.schema.graph import Graph, Loss, Value, Weight
from autopart.schema.job import Optimizer
from autopart.schema.plan import Memory

__all__ = [
    "MemoryTerms", "Rules", "StageFacts", "full_bytes", "loss_of", "memory_terms", "num_in_flight", "stage_facts",
    "stage_memory",
]  # fmt: skip

Bytes = Any
"""an int or an int64 array: the formulas below hold for both"""

NUM_OPTIMIZER_STATES: dict[Optimizer, int] = {"adamw": 2, "adam": 2, "momentum": 1, "sgd": 0, "none": 0}
"""copies of the trainable weights that torch.optim keeps, in their own data type unless there are master weights"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """Bytes of layers first .. last - 1; those of values are for one micro-batch."""

    weights: Bytes
    trainable: Bytes
    full_trainable: Bytes
    """in float32, where they are narrower"""
    largest_trainable: Bytes
    second_trainable: Bytes
    """the largest but one"""
    largest_tied: Bytes
    """of the trainable weights that more than one layer of the model uses"""
    saved: Bytes
    """for backward, without what came in: its receive buffer is kept anyway; where layers are run again, what is held
    for that"""
    kept: Bytes
    """values produced here that cross the end of the stage and that no layer of it saves or holds"""
    incoming: Bytes
    incoming_gradient: Bytes
    """the differentiable part of ``incoming``"""
    outgoing: Bytes
    outgoing_gradient: Bytes
    is_first: Any
    is_last: Any
    alive: Bytes
    """the most while one micro-batch goes through in inference"""
    first_pass: Bytes
    """the most beyond what is saved in the backward that makes the weights' gradients, those included"""
    later_pass: Bytes
    """the same in a later backward, beside the gradients"""
    loss_saved: Bytes = 0
    loss_backward: Bytes = 0
    """of the loss, on the last stage"""
    cache_per_token: Bytes = 0
    """keys and values of one token, where text is generated"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerms:
    """The terms of schema Memory; ``activations`` and ``loss`` are for one micro-batch in flight."""

    parameters: Bytes
    gradients: Bytes
    optimizer: Bytes
    activations: Bytes
    loss: Bytes
    """the last stage's outputs, and what the loss saves of them"""
    workspace: Bytes
    """the largest need of a layer's backward (inference: of a layer), or of the optimizer"""
    passing: Bytes
    """at the peak of forward and backward, beside parameters, optimizer and micro-batches in flight: workspace and the
    gradients that are there by then"""
    update: Bytes
    """needed beside weights and optimizer state when the activations are gone: gradients and the optimizer's
    temporaries, or the buffer for a tied weight's gradient from the other stage"""
    communication: Bytes
    kv_cache: Bytes
    rules: Rules

    @property
    def per_microbatch(self) -> Bytes:
        """Of every micro-batch in flight, the allocator's share included."""
        return self.rules.fragmented(self.activations + self.loss)

    def fixed(self) -> Bytes:
        """Everything at the peak of forward and backward but the micro-batches in flight."""
        return self._resident() + self.rules.fragmented(self.passing)

    def _resident(self) -> Bytes:
        """What stays from step to step."""
        return self.parameters + self.optimizer + self.communication + self.kv_cache + self.rules.segment_bytes

    def total(self, in_flight: Bytes) -> Bytes:
        """Peak with so many micro-batches in flight: the larger of computing and updating."""
        return self._resident() + self.rules.fragmented(self.anew(in_flight))

    def anew(self, in_flight: Bytes) -> Bytes:
        """Of the peak, what every step allocates anew."""
        return np.maximum((self.activations + self.loss) * in_flight + self.passing, self.update)


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
    received = num * facts.incoming
    if not rules.training:
        zero = 0 * facts.weights
        return MemoryTerms(
            parameters=facts.weights, gradients=zero, optimizer=zero,
            activations=facts.kept * inner, loss=facts.kept * last,
            workspace=facts.alive, passing=np.maximum(facts.alive - facts.kept, 0), update=zero,
            communication=received, kv_cache=facts.cache_per_token * rules.cached_tokens, rules=rules,
        )  # fmt: skip
    num_sent = min(num, 2) if rules.schedule == "1f1b" else num
    sent = inner * num * facts.outgoing_gradient + (1 - 1 * facts.is_first) * num_sent * facts.incoming_gradient
    if rules.schedule not in ("gpipe", "1f1b"):  # torch's runtime waits for its sends at the end of a step
        sent = sent + inner * num * facts.outgoing
    workspace = np.maximum(facts.later_pass - facts.loss_saved, facts.loss_backward)
    temporaries = np.maximum(_optimizer_temporaries(facts, rules), facts.largest_tied)
    return MemoryTerms(
        parameters=facts.weights,
        gradients=facts.trainable,
        optimizer=_optimizer_states(facts, rules),
        activations=facts.saved + facts.kept * inner,
        loss=facts.kept * last + facts.loss_saved,
        workspace=np.maximum(workspace, temporaries),
        passing=_passing(facts, rules, workspace),
        update=facts.trainable + temporaries,
        communication=received + sent,
        kv_cache=0 * facts.weights,
        rules=rules,
    )


def _passing(facts: StageFacts, rules: Rules, workspace: Bytes) -> Bytes:
    """In the first backward gradients are made, in later ones they are there.

    GPipe has one micro-batch less in flight by then; 1F1B has taken up the next one.
    """
    first = np.maximum(facts.first_pass - facts.loss_saved, facts.loss_backward)
    if rules.optimizer == "none":  # nobody sets them to None: those of earlier steps are there
        return facts.trainable + workspace
    if rules.num_microbatches == 1:
        return first
    gone = (facts.saved + facts.kept + facts.loss_saved) if rules.schedule == "gpipe" else 0
    return np.maximum(first, facts.trainable + workspace - gone)


def _optimizer_states(facts: StageFacts, rules: Rules) -> Bytes:
    """Micikevicius et al. 2018, section 3.1: a float32 copy of every narrow weight, and the states as wide as it."""
    states = NUM_OPTIMIZER_STATES[rules.optimizer]
    if not rules.master_weights:
        return states * facts.trainable
    # of weights of two bytes, half of the float32 copy is what that is wider
    return states * facts.full_trainable + 2 * (facts.full_trainable - facts.trainable)


def _optimizer_temporaries(facts: StageFacts, rules: Rules) -> Bytes:
    """Multi-tensor Adam holds the denominators of all weights at once; SGD needs nothing.

    Single-tensor Adam makes two tensors of a weight's size while the one before's denominator is still there
    (``exp_avg_sq_sqrt`` and ``denom`` in torch/optim/adam.py).
    """
    if not NUM_OPTIMIZER_STATES[rules.optimizer]:
        return 0 * facts.trainable
    return facts.trainable if rules.multi_tensor else 2 * facts.largest_trainable + facts.second_trainable


def loss_of(graph: Graph) -> Loss:
    """What the loss needs; of one that is not known, as much as a cross-entropy of all outputs (log-softmax)."""
    if graph.loss is not None or not graph.training:
        return graph.loss or Loss(saved_bytes=0, backward_bytes=0)
    outputs = sum(value.bytes for value in graph.crossing(len(graph.layers)) if value.differentiable)
    return Loss(saved_bytes=outputs, backward_bytes=2 * outputs)


def stage_facts(graph: Graph, first: int, last: int, *, recompute: bool = False) -> StageFacts:
    """The facts of layers first .. last - 1, by going through them; ``recompute``: run again in the backward."""
    layers = graph.layers[first:last]
    used = {index for layer in layers for index in layer.weights}
    trainable = {index for index in used if graph.weights[index].trainable and not graph.weights[index].is_buffer}
    num_users = Counter(index for layer in graph.layers for index in set(layer.weights))
    tied = {index for index in trainable if num_users[index] > 1}
    sizes = sorted((graph.weights[index].bytes for index in trainable), reverse=True)
    entering, leaving = graph.crossing(first), graph.crossing(last)
    is_last, loss = last == len(graph.layers), loss_of(graph)
    each = passes(graph, first, last)
    facts = StageFacts(
        weights=sum(graph.weights[index].bytes for index in used),
        trainable=sum(sizes),
        full_trainable=sum(full_bytes(graph.weights[index]) for index in trainable),
        largest_trainable=max(sizes, default=0),
        second_trainable=max(sizes[1:], default=0),
        largest_tied=max((graph.weights[index].bytes for index in tied), default=0),
        saved=max(0, sum(layer.saved_bytes for layer in layers)
                  - sum(value.bytes for value in entering if _is_inside(value.saved_by, first, last))),
        kept=_kept(leaving, [value.saved_by for value in leaving], first, last),
        incoming=sum(value.bytes for value in entering),
        incoming_gradient=sum(value.bytes for value in entering if value.differentiable),
        outgoing=sum(value.bytes for value in leaving),
        outgoing_gradient=sum(value.bytes for value in leaving if value.differentiable),
        is_first=first == 0,
        is_last=is_last,
        alive=each.alive,
        first_pass=each.first,
        later_pass=each.later,
        loss_saved=loss.saved_bytes if is_last else 0,
        loss_backward=loss.backward_bytes if is_last else 0,
        cache_per_token=sum(layer_cache_bytes(graph, first, last)),
    )
    return _run_again(facts, graph, first, last) if recompute else facts


def _run_again(facts: StageFacts, graph: Graph, first: int, last: int) -> StageFacts:
    """The facts of a stage whose layers are run again."""
    again, holders = rerun(graph, first, last), dict(zip(graph.values, held_from(graph), strict=True))
    leaving = graph.crossing(last)
    return replace(
        facts, saved=again.held, first_pass=again.first, later_pass=again.later,
        kept=_kept(leaving, [holders[value] for value in leaving], first, last),
    )


def _kept(leaving: Sequence[Value], holders: Sequence[int | None], first: int, last: int) -> int:
    """Bytes of values made here that nobody here holds for backward; ``holders``: the layers that would."""
    made = ((value, holder) for value, holder in zip(leaving, holders, strict=True) if value.producer >= first)
    return sum(value.bytes for value, holder in made if not _is_inside(holder, first, last))


def full_bytes(weight: Weight) -> int:
    """Of a weight in float32, or as it is where that is wider."""
    return max(weight.bytes, 4 * weight.num_elements)


def _is_inside(layer: int | None, first: int, last: int) -> bool:
    return layer is not None and first <= layer < last


def stage_memory(facts: StageFacts, rules: Rules, in_flight: int) -> Memory:
    """Peak memory of one stage; ``not_at_once`` is what its terms' own peaks are apart in time."""
    terms = memory_terms(facts, rules)
    anew = int(terms.anew(in_flight))
    memory = Memory(
        parameters=int(terms.parameters),
        gradients=int(terms.gradients),
        optimizer=int(terms.optimizer),
        activations=int(terms.activations * in_flight),
        loss=int(terms.loss * in_flight),
        workspace=int(terms.workspace),
        communication=int(terms.communication),
        fragmentation=int(rules.fragmented(anew)) - anew + rules.segment_bytes,
        kv_cache=int(terms.kv_cache),
    )
    return replace(memory, not_at_once=memory.total - int(terms.total(in_flight)))
