"""What the shell and Python files for other engines have in common: comments that stay comments, and refusals."""

from __future__ import annotations

from collections.abc import Iterable

from autopart.errors import UsageError
from autopart.schema.device import Device
from autopart.schema.plan import Plan, Stage

__all__ = ["comments", "is_cpu", "one_tensor_parallel", "stage_devices", "visible_devices"]


def comments(lines: Iterable[str]) -> str:
    """Comment lines of shell or Python; what could end a comment (a name comes from a stranger's file) is shown."""
    return "".join("# " + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line) + "\n" for line in lines)


def is_cpu(device: Device) -> bool:
    """Whether it is a processor rather than a GPU."""
    return device.backend == "cpu" or device.kind.startswith("cpu")


def stage_devices(plan: Plan, stage: Stage) -> tuple[Device, ...]:
    """The devices of a stage."""
    return tuple(plan.cluster.device(name) for name in stage.devices)


def one_tensor_parallel(plan: Plan, engine: str) -> int:
    """The tensor-parallel size of all stages.

    Raises:
        UsageError: it differs between stages, or stages have replicas of their own.
    """
    sizes = [stage.tensor_parallel for stage in plan.stages]
    if len(set(sizes)) > 1:
        raise UsageError(f"{engine} knows one tensor-parallel size, the stages have {sizes}; plan --tensor-parallel 1")
    replicas = [stage.data_parallel for stage in plan.stages]
    if set(replicas) != {1}:
        raise UsageError(f"{engine} has no replicas inside a stage, the stages have {replicas}; plan --data-parallel 1")
    return sizes[0]


def visible_devices(plan: Plan) -> tuple[str, ...]:
    """A shell line that shows the engine the GPUs in the plan's order, if they are here; else a comment with names."""
    used = [device for stage in plan.stages for device in stage_devices(plan, stage)]
    numbers = [(device.torch_device or "").rpartition(":")[2] for device in used if device.backend == "cuda"]
    if len(numbers) < len(used):
        return (comments([f"devices in this order: {', '.join(device.name for device in used)}"]).rstrip(),)
    return (f"export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={','.join(numbers)}",)
