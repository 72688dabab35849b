"""What one process holds of its stages: their segments, its part of their weights, and what the user should know."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from autopart.program import Program, Segment
from autopart.recompute import region_of
from autopart.running.dataparallel import batch_statistics, start_alike
from autopart.running.mesh import Mesh, Seat
from autopart.running.stages import rank_stages, rank_weights, rerun_planned, spans, stage_segment
from autopart.running.tied import Sharing, sharings
from autopart.schema.plan import Plan
from autopart.sharding import Parted, Shares, Team, reads_rows, share_layers
from autopart.units import format_bytes

__all__ = ["StageParts", "make_parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageParts:
    """The stages of a process, ready to be run."""

    segments: tuple[Segment, ...]
    """of every stage of the process, ascending"""
    parted: Parted
    """the weights that the process has a part of"""
    shared: tuple[Sharing, ...]
    """the weights that several device groups use"""
    tied: frozenset[str]
    """those of them that all shard in the same way"""
    draws: bool
    """some operator may draw random numbers"""
    notes: tuple[str, ...]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by all their names in the user's model."""
        found: dict[str, torch.Tensor] = {}
        for segment in self.segments:
            found |= dict(segment.named_parameters(remove_duplicate=False))
            found |= dict(segment.named_buffers(remove_duplicate=False))
        return found


def make_parts(program: Program, plan: Plan, seat: Seat, mesh: Mesh, device: torch.device) -> StageParts:
    """The stages of a process; collective in its device group, whose processes get the first one's weights."""
    stages = rank_stages(plan, seat.rank)
    placed: dict[str, torch.Tensor] = {}
    shared = sharings(rank_weights(plan, program.graph))
    held = frozenset(name for each in shared for name in each.names)
    whole = [
        stage_segment(
            program, spans(plan, program.graph)[stage], device, placed, dtype=plan.stages[stage].dtype, shared=held
        )
        for stage in stages
    ]
    start_alike(placed.values(), mesh.stage)
    notes = _replica_notes(plan, stages, whole) + _rerun_notes(plan, stages)
    tied, pinned = _tied_names(program, plan, shared)
    parted = Parted()
    if mesh.tensor is not None:
        team = Team(mesh.tensor, seat.tensor, seat.num_tensor)
        parts = [share_layers(program, segment, team, tied=tied, pinned=pinned) for segment in whole]
        notes += tuple(_whole_note(stage, part, seat) for stage, part in zip(stages, parts, strict=True) if part.whole)
        parted = Parted(team=team, shards={name: each for part in parts for name, each in part.shards.items()})
        whole = [part.segment for part in parts]
    training = plan.job.mode == "train"
    ready = [rerun_planned(each, plan.stages[stage], training=training)
             for stage, each in zip(stages, whole, strict=True)]  # fmt: skip
    return StageParts(
        segments=tuple(segment for segment, _ in ready), parted=parted, shared=shared, tied=tied,
        draws=any(_draws(each) for each in whole), notes=notes + tuple(note for _, each in ready for note in each),
    )  # fmt: skip


def _tied_names(program: Program, plan: Plan, shared: tuple[Sharing, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Of the weights that several groups use, those that all of them shard by rows, and those that stay whole."""
    widths = [plan.stages[plan.ranks.index(rank)].tensor_parallel for rank in range(len(plan.devices_by_rank))]
    names, readers = dict(program.weight_names), dict[str, list[bool]]()
    for node in program.captured.graph.nodes:
        if node.op == "get_attr" and str(node.target) in names:
            rows = [reads_rows(node, user) and region_of(user) is None for user in node.users]
            readers.setdefault(names[str(node.target)], []).extend(rows)
    wide = [sharing for sharing in shared if len({1, *(widths[rank] for rank in sharing.stages)}) == 2]
    alike = [sharing for sharing in wide if 1 not in {widths[rank] for rank in sharing.stages}]
    tied = {name for sharing in alike for name in sharing.names if all(readers.get(name, [False]))}
    everything = {name for sharing in shared for name in sharing.names}
    return frozenset(tied), frozenset(everything - tied)


def _whole_note(stage: int, part: Shares, seat: Seat) -> str:
    held = dict(part.segment.named_parameters())
    num_bytes = sum(held[name].nbytes for name in part.whole)
    some = ", ".join(part.whole[:3]) + (f" and {len(part.whole) - 3} more" if len(part.whole) > 3 else "")
    return (
        f"Stage {stage}: {format_bytes(num_bytes)} of its weights cannot be sharded ({some}); each of the "
        f"{seat.num_tensor} devices that share it has them and computes them whole."
    )


def _replica_notes(plan: Plan, stages: tuple[int, ...], segments: list[Segment]) -> tuple[str, ...]:
    num_replicas = plan.stages[stages[0]].data_parallel
    if plan.job.mode != "train" or num_replicas == 1 or not batch_statistics(segments):
        return ()
    num_samples = plan.job.batch // plan.schedule.num_microbatches // num_replicas
    return (
        f"Batch normalisation in stage {stages[0]} takes each replica's own statistics, of {num_samples} of the "
        f"micro-batch's {num_samples * num_replicas} samples; the running statistics are the first replica's.",
    )


def _rerun_notes(plan: Plan, stages: tuple[int, ...]) -> tuple[str, ...]:
    """Every backward pass over a layer runs it again; zero-bubble has one for inputs, then some for weights."""
    again = [str(stage) for stage in stages if plan.stages[stage].recompute]
    if plan.job.mode != "train" or plan.schedule.name != "zero-bubble" or not again:
        return ()
    return (
        f"Stage {', '.join(again)}: zero-bubble takes a backward in halves, and layers are run again for each, two or "
        f"three times in all where the plan counts on one; 1f1b needs one.",
    )


def _draws(segment: Segment) -> bool:
    """Whether an operator may draw random numbers; of those that are no single operator of torch, it may."""

    def may_draw(node: fx.Node) -> bool:
        if isinstance(node.target, torch._ops.OpOverload):
            return torch.Tag.nondeterministic_seeded in node.target.tags
        return node.op == "call_function" and getattr(node.target, "__module__", "") not in ("_operator", "operator")

    return any(may_draw(node) for node in segment.body.graph.nodes)
