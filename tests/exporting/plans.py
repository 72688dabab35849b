"""Plans made by hand for the exporters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopart.schema.plan import Plan
from tests.paper import a_device, a_plan, a_stage

__all__ = ["cpu_first", "decoder", "with_layers"]


def with_layers(*stages: tuple[str, ...], training: bool = False) -> Plan:
    """A plan whose stages have these layers, one GPU each."""
    plan = a_plan(training=training)
    devices = tuple(a_device(f"rtx-4090:{index}") for index in range(len(stages)))
    (transfer,) = plan.transfers
    return replace(
        plan,
        cluster=replace(plan.cluster, devices=devices), excluded=(),
        stages=tuple(a_stage(index, devices[index].name, layers) for index, layers in enumerate(stages)),
        transfers=tuple(replace(transfer, from_stage=at, to_stage=at + 1) for at in range(len(stages) - 1)),
        model=replace(plan.model, num_layers=sum(map(len, stages))),
        schedule=replace(plan.schedule, warmup=(0,) * len(stages)),
    )


def decoder(counts: Sequence[int], *, training: bool = False) -> Plan:
    """A language model with so many blocks in every stage; the embedding in the first, norm and head in the last."""
    stages, at = [], 0
    for number in counts:
        stages.append(tuple(f"model.layers.{at + index}" for index in range(number)))
        at += number
    stages[0] = ("model.embed", *stages[0])
    stages[-1] = (*stages[-1], "model.norm", "lm_head")
    return with_layers(*stages, training=training)


def cpu_first(plan: Plan) -> Plan:
    """The plan with its first device a processor."""
    first, *others = plan.cluster.devices
    devices = (replace(first, backend="cpu", kind="cpu-8t"), *others)
    return replace(plan, cluster=replace(plan.cluster, devices=devices))
