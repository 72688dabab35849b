"""Memory of several stages on one device: what they keep adds up, what they need to compute they need in turn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from autopart.orders import in_flight
from autopart.planning.costing.memory import num_in_flight
from autopart.planning.costing.rules import Rules
from autopart.schema.plan import Memory

__all__ = ["in_flight_of", "together"]


def in_flight_of(rules: Rules, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Micro-batches whose activations each stage keeps at once; ``ranks``: the device of every stage."""
    plain = ranks == tuple(range(len(ranks)))
    if not rules.training or (plain and rules.schedule in ("gpipe", "1f1b")):
        return tuple(num_in_flight(rules, len(ranks), index) for index in range(len(ranks)))
    return in_flight(rules.schedule, ranks, rules.num_microbatches)


def together(memories: tuple[Memory, ...], devices: tuple[str, ...]) -> tuple[Memory, ...]:
    """The stages' memories, such that those of one device add up to its peak.

    While one stage computes the others keep all but their workspace: the peak is where the one whose workspace adds
    most computes.  The others' share of it is booked as ``not_at_once``.
    """
    found = list(memories)
    stages_of: dict[str, list[int]] = defaultdict(list)
    for index, device in enumerate(devices):
        stages_of[device].append(index)
    for stages in stages_of.values():
        if len(stages) > 1:
            most = max(stages, key=lambda index: _passing(memories[index]))
            for index in stages:
                if index != most:
                    memory = memories[index]
                    found[index] = replace(memory, not_at_once=memory.not_at_once + _passing(memory))
    return tuple(found)


def _passing(memory: Memory) -> int:
    """Of a stage's peak, what it needs only while it computes."""
    return max(0, memory.workspace - memory.not_at_once)
