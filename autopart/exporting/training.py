"""A plan as engines that train take it: Megatron-LM and DeepSpeed."""

from __future__ import annotations

from itertools import accumulate

from autopart.errors import UsageError
from autopart.exporting.blocks import Units, decoder_blocks, units_of
from autopart.exporting.scripts import comments, one_tensor_parallel
from autopart.schema.plan import Plan

__all__ = ["to_deepspeed", "to_megatron"]

_SCHEDULES = {
    "gpipe": "all forwards first", "1f1b": "1F1B", "interleaved": "interleaved 1F1B", "zero-bubble": "zero bubble",
    "looped-bfs": "looped breadth first",
}


def to_megatron(plan: Plan) -> str:
    """Arguments of Megatron-LM, one a line: the pipeline layout and what belongs to it.

    In the layout ``E`` is the embedding, ``t`` a decoder block, ``L`` norm, head and loss, ``|`` the end of a stage
    (Megatron-LM, docs "Custom Pipeline Model Parallel Layout"; an empty stage is allowed).

    Raises:
        UsageError: the model is not one list of blocks, or stages are of unequal width.
    """
    width = one_tensor_parallel(plan, "Megatron-LM")
    units = decoder_blocks(plan, "Megatron-LM")
    counts = units.counts(len(plan.stages), blocks_only=True)
    pieces = [f"t*{count}" if count > 1 else "t" * count for count in counts]
    pieces[0] = "E" + pieces[0]
    pieces[-1] += "L"
    micro = plan.job.batch // plan.schedule.num_microbatches
    arguments = [
        f"--pipeline-model-parallel-size {len(counts)}", f"--tensor-model-parallel-size {width}",
        f'--pipeline-model-parallel-layout "{"|".join(pieces)}"', f"--num-layers {sum(counts)}",
        f"--micro-batch-size {micro}", f"--global-batch-size {plan.job.batch}",
    ]
    recomputing = [stage.index for stage in plan.stages if stage.recompute]
    if recomputing:
        arguments.append("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1")
    remarks = [*units.remarks, *_misplaced(units, len(counts))]
    if recomputing and len(recomputing) < len(plan.stages):
        remarks.append(f"recompute is for all stages; the plan wants it for {recomputing} only")
    remarks.append(
        f"not expressed: which device takes which stage (ranks are in the launcher's order: "
        f"{', '.join(name for stage in plan.stages for name in stage.devices)}), memory caps, "
        f"the schedule (Megatron runs 1F1B, the plan is {_SCHEDULES[plan.schedule.name]})"
    )
    head = comments([f"{plan.model.name} for Megatron-LM: {sum(counts)} blocks", *remarks])
    return head + "\n".join(arguments) + "\n"


def to_deepspeed(plan: Plan) -> str:
    """Python: ``PARTS`` over the names in ``LAYERS``, and a PipelineModule that is split there.

    DeepSpeed has no argument for given parts; ``_partition_layers`` is where it makes its own (deepspeed/runtime/pipe/
    module.py).

    Raises:
        UsageError: stages are several devices wide, or one is left without a layer.
    """
    if one_tensor_parallel(plan, "DeepSpeed's PipelineModule") > 1:
        raise UsageError("DeepSpeed's PipelineModule splits no layers between devices; plan --tensor-parallel 1")
    units = units_of(plan)
    counts = units.counts(len(plan.stages))
    if 0 in counts:
        raise UsageError(f"DeepSpeed wants a layer in every stage, whole blocks give {counts}; plan with fewer stages")
    crossing = max((sum(t.to_stage == stage.index for t in plan.transfers) for stage in plan.stages), default=0)
    remarks = [*units.remarks, "LAYERS are what the layers of the PipelineModule must be, in this order"]
    if crossing > 1:
        remarks.append(f"a cut is crossed by {crossing} tensors: those layers must pass tuples on")
    remarks.append("not expressed: memory caps, and the schedule (DeepSpeed runs 1F1B); "
                   f"stages in rank order: {', '.join(stage.devices[0] for stage in plan.stages)}")
    names = "".join(f"    {unit.name!r},\n" for unit in units.units)
    return (
        comments([f"{plan.model.name} for DeepSpeed: {sum(counts)} layers in {len(counts)} stages", *remarks])
        + _DEEPSPEED.format(
            names=names, parts=[0, *accumulate(counts)], num_stages=len(counts),
            micro=plan.job.batch // plan.schedule.num_microbatches, num=plan.schedule.num_microbatches,
        )
    )


_DEEPSPEED = '''from deepspeed.pipe import PipelineModule

LAYERS = [
{names}]
PARTS = {parts}
CONFIG = {{"train_micro_batch_size_per_gpu": {micro}, "gradient_accumulation_steps": {num}}}


class PlannedPipelineModule(PipelineModule):
    """PlannedPipelineModule(layers, num_stages={num_stages}, loss_fn=...)"""

    def _partition_layers(self, method="planned"):
        if len(self._layer_specs) != PARTS[-1]:
            raise ValueError(f"the plan is for {{PARTS[-1]}} layers, not {{len(self._layer_specs)}}")
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = PARTS
        self._set_bounds(start=PARTS[stage], stop=PARTS[stage + 1])
'''


def _misplaced(units: Units, num_stages: int) -> list[str]:
    """Layers outside of the blocks that the layout has elsewhere: before them first, after them last."""
    at = [index for index, unit in enumerate(units.units) if unit.is_block]
    moved = [unit.name for unit in units.units[: at[0]] if unit.stage != 0]
    moved += [unit.name for unit in units.units[at[-1] + 1 :] if unit.stage != num_stages - 1]
    return [f"the layout puts {', '.join(moved)} at the pipeline's ends, the plan does not"] if moved else []
