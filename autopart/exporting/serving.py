"""A plan as engines that serve language models take it: vLLM and llama.cpp."""

from __future__ import annotations

import json

from autopart.errors import UsageError
from autopart.exporting.blocks import decoder_blocks
from autopart.exporting.scripts import comments, is_cpu, one_tensor_parallel, stage_devices, visible_devices
from autopart.schema.plan import Plan

__all__ = ["to_llamacpp", "to_vllm"]

_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}


def to_vllm(plan: Plan) -> str:
    """Shell lines: ``VLLM_PP_LAYER_PARTITION`` and the flags of ``vllm serve``; set MODEL before.

    vLLM puts the embedding on the first rank, norm and head on the last one, and wants at least a block on each.
    The variable is read by ``vllm.distributed.utils.get_pp_indices``.

    Raises:
        UsageError: the plan trains, uses a CPU, stages of unequal width, or a stage without a block.
    """
    _check_serving(plan, "vLLM")
    width = one_tensor_parallel(plan, "vLLM")
    cpus = [device.name for stage in plan.stages for device in stage_devices(plan, stage) if is_cpu(device)]
    if cpus:
        raise UsageError(f"vLLM's pipeline runs on GPUs, the plan uses {', '.join(cpus)}; plan without it")
    units = decoder_blocks(plan, "vLLM")
    counts = units.counts(len(plan.stages), blocks_only=True)
    _check_no_empty(counts, "vLLM")
    nodes = len({device.node for stage in plan.stages for device in stage_devices(plan, stage)})
    flags = [f"--pipeline-parallel-size {len(plan.stages)}", f"--tensor-parallel-size {width}"]
    flags += [f"--dtype {_DTYPES[plan.job.dtype]}"] if plan.job.dtype in _DTYPES else []
    flags += ["--distributed-executor-backend ray"] if nodes > 1 else []
    return (
        comments([
            f"{plan.model.name} for vLLM: {sum(counts)} blocks in {len(counts)} stages", *units.remarks,
            "not expressed: micro-batches (vLLM schedules requests itself), memory caps per device "
            "(--gpu-memory-utilization is one share for all), the memory of its KV cache",
        ])
        + "\n".join((*visible_devices(plan), f"export VLLM_PP_LAYER_PARTITION={','.join(map(str, counts))}"))
        + f'\nvllm serve "${{MODEL:?set MODEL to its name or folder}}" {" ".join(flags)}\n'
    )


def to_llamacpp(plan: Plan) -> str:
    """Shell lines: ``-ngl``, ``--tensor-split`` and ``--split-mode layer`` of ``llama-server``; set MODEL before.

    llama.cpp gives the GPUs the last ``-ngl`` of its blocks + 1 layers (the output is the last) and layer i to the
    first device whose running share of the split exceeds i / number (``llama_model::load_tensors``); whole layer
    counts as shares so come out exactly.

    Raises:
        UsageError: the plan trains, shares layers between devices, or uses a CPU elsewhere than at the beginning.
    """
    _check_serving(plan, "llama.cpp")
    if one_tensor_parallel(plan, "llama.cpp") > 1:
        raise UsageError("llama.cpp's split by layers has no tensor-parallel stages; plan --tensor-parallel 1")
    on_cpu = [is_cpu(stage_devices(plan, stage)[0]) for stage in plan.stages]
    if any(on_cpu[1:]):
        raise UsageError(
            f"llama.cpp gives the CPU the first layers only, the plan gives it stage {on_cpu.index(True, 1)} too; "
            "plan without the CPU"
        )
    units = decoder_blocks(plan, "llama.cpp")
    counts = units.counts(len(plan.stages), blocks_only=True)
    gpu_counts = list(counts[1:] if on_cpu[0] else counts)
    if gpu_counts:
        gpu_counts[-1] += 1  # the output layer
        _check_no_empty(gpu_counts, "llama.cpp")
    flags = [f"-ngl {sum(gpu_counts)}"]
    if len(gpu_counts) > 1:
        flags.append(f"--split-mode layer --tensor-split {','.join(map(str, gpu_counts))}")
    return (
        comments([
            f"{plan.model.name} for llama.cpp: {sum(counts)} blocks as {'+'.join(map(str, counts))}, "
            "the output layer with the last", *units.remarks,
            "not expressed: micro-batches, memory caps, the KV cache; llama.cpp keeps the token embedding on the CPU",
        ])
        + "\n".join((*(visible_devices(plan) if not on_cpu[0] else ()), ""))
        + f'llama-server -m "${{MODEL:?set MODEL to its .gguf file}}" {" ".join(flags)}\n'
    )


def _check_serving(plan: Plan, engine: str) -> None:
    if plan.job.mode == "train":
        raise UsageError(f"{engine} serves models, the plan trains one; plan --mode infer, or export --to megatron")


def _check_no_empty(counts: tuple[int, ...] | list[int], engine: str) -> None:
    if 0 in counts:
        raise UsageError(
            f"{engine} wants a block in every stage, the plan has {json.dumps(list(counts))}; "
            f"plan with --stages {len(counts) - 1}, or pin a block to that device"
        )
