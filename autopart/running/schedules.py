"""torch's schedule for a plan: one of its own, or its runtime with a table of ours where it has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.distributed.pipelining import PipelineStage, schedules

from autopart.errors import RunError
from autopart.orders import Action, Deed, Step, orders_of, torch_name, with_messages
from autopart.schema.job import ScheduleName

__all__ = ["Schedule", "make_prefetching", "make_schedule"]

Loss = Callable[..., torch.Tensor]


class Schedule(Protocol):
    """What steps a rank's stages through a batch."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One step."""
        ...


def make_schedule(
    name: ScheduleName, owners: tuple[int, ...], stages: Sequence[PipelineStage], num_microbatches: int,
    loss: Loss | None,
) -> Schedule:  # fmt: skip
    """What runs this rank's ``stages``; gradients are those of the sum of the micro-batches' losses.

    Args:
        name: of the schedule; inference has one order of micro-batches, GPipe's, whatever the name.
        owners: the rank of every stage of the pipeline.
        stages: those of this rank, ascending.
        num_microbatches: of a step.
        loss: None for inference.

    Raises:
        RunError: torch's runtime of tables, which is private, is not as it was.
    """
    # The loss divides by the number of micro-batches itself: torch's scale_grads would divide what has been
    # accumulated by earlier steps once more.
    words: dict[str, Any] = {"loss_fn": loss, "scale_grads": False}
    training = loss is not None
    stock = torch_name(name if training else "gpipe", owners, num_microbatches)
    if stock is None:
        return _table(name if training else "gpipe", owners, list(stages), num_microbatches, words)
    kind = getattr(schedules, stock)
    if issubclass(kind, schedules.PipelineScheduleSingle):
        (stage,) = stages
        return kind(stage, num_microbatches, **words)  # type: ignore[no-any-return]
    return kind(list(stages), num_microbatches, **words)  # type: ignore[no-any-return]


def make_prefetching(
    name: ScheduleName, owners: tuple[int, ...], stages: Sequence[PipelineStage], num_microbatches: int,
    loss: Loss | None, ahead: int,
) -> tuple[Schedule, str]:  # fmt: skip
    """As ``make_schedule``, with receives posted ``ahead`` computations early; else the usual one, and why.

    Args:
        name: of the schedule.
        owners: the rank of every stage of the pipeline.
        stages: those of this rank.
        num_microbatches: of a step.
        loss: None for inference.
        ahead: 0: the usual schedule.
    """
    why = ""
    if stages[0].device.type == "cuda":
        why = "NCCL works in the order of posting, so that a receive posted early holds up the sends behind it"
    elif ahead:
        try:
            return _prefetching(name, owners, list(stages), num_microbatches, loss, ahead), ""
        except (AttributeError, TypeError, AssertionError) as error:
            why = f"torch {torch.__version__} does not take such an order ({error})"
    note = f"Receives are posted when they are needed, not {ahead} computations before: {why}." if ahead else ""
    return make_schedule(name, owners, stages, num_microbatches, loss), note


def _prefetching(
    name: ScheduleName, owners: tuple[int, ...], stages: list[PipelineStage], num_microbatches: int,
    loss: Loss | None, ahead: int,
) -> Schedule:  # fmt: skip
    runtime = schedules._PipelineScheduleRuntime(  # type: ignore[no-untyped-call]
        stages, num_microbatches, loss_fn=loss, scale_grads=False
    )
    orders = orders_of(name if loss is not None else "gpipe", owners, num_microbatches)
    runtime._prepare_schedule_with_comms(
        {
            rank: [_step(step) for step in with_messages(order, owners, ahead)]
            for rank, order in enumerate(orders)
        },
        format="compute_comms",
    )
    if loss is None:
        _keep_forwards(runtime)
    return runtime


def _step(step: Step) -> Any:
    if isinstance(step, Action):
        return _action(step)
    kinds = schedules._ComputationType
    kind = {
        ("recv", "forward"): kinds.RECV_F, ("send", "forward"): kinds.SEND_F,
        ("recv", "backward"): kinds.RECV_B, ("send", "backward"): kinds.SEND_B,
    }  # fmt: skip
    return schedules._Action(step[2], kind[step[:2]], step[3])


def _table(
    name: ScheduleName, owners: tuple[int, ...], stages: list[PipelineStage], num_microbatches: int,
    words: dict[str, Any],
) -> Schedule:  # fmt: skip
    """Our order on torch's private runtime, which puts the messages and the ends of the backward in."""
    try:
        runtime = schedules._PipelineScheduleRuntime(stages, num_microbatches, **words)  # type: ignore[no-untyped-call]
        orders = orders_of(name, owners, num_microbatches)
        runtime._prepare_schedule_with_comms({
            rank: [_action(action) for action in order] for rank, order in enumerate(orders)
        })  # fmt: skip
        if words["loss_fn"] is None:
            _keep_forwards(runtime)
    except (AttributeError, TypeError, AssertionError) as error:
        raise RunError(
            f"torch {torch.__version__} cannot run stages placed on devices {owners} under {name} ({error}); plan "
            f"with --schedule interleaved and as many stages on every device, or with one stage per device"
        ) from error
    return runtime


def _action(action: Action) -> Any:
    kinds = schedules._ComputationType
    kind: dict[Deed, Any] = {
        "forward": kinds.FORWARD, "backward": kinds.FULL_BACKWARD, "input": kinds.BACKWARD_INPUT,
        "weight": kinds.BACKWARD_WEIGHT,
    }  # fmt: skip
    return schedules._Action(action.stage, kind[action.deed], action.microbatch)


def _keep_forwards(runtime: Any) -> None:
    """Inference: the table without its second half, which torch would not take without."""
    kinds = schedules._ComputationType
    forward = {kinds.FORWARD, kinds.SEND_F, kinds.RECV_F}
    runtime.pipeline_order_with_comms = {
        rank: [action for action in actions if action.computation_type in forward]
        for rank, actions in runtime.pipeline_order_with_comms.items()
    }
