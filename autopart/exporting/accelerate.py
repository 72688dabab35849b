"""A plan as Hugging Face accelerate takes it: ``device_map`` and ``max_memory`` of ``dispatch_model``.

accelerate moves values at calls of modules, so what a parent module computes between its children (a residual
addition, a concatenation) must find all its operands on one device.  With the traced model that is looked up operator
by operator (``dispatching``).  From a plan alone it is known only of cuts that one value crosses, between neighbours
of a numbered list of blocks or at the top of the model.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

from autopart.errors import UsageError
from autopart.exporting.blocks import units_of
from autopart.exporting.dispatching import DeviceWord, first_conflict
from autopart.exporting.scripts import is_cpu
from autopart.schema.device import Device
from autopart.schema.plan import Plan, Stage

if TYPE_CHECKING:
    from autopart.program import Program

__all__ = ["to_accelerate"]

_INSTEAD = "export --to torch, or run the plan with autopart"


def to_accelerate(plan: Plan, program: Program | None = None) -> str:
    """JSON with ``device_map`` (module prefix or weight name: device) and ``max_memory`` (device: bytes).

    Every weight that the plan lists is under exactly one prefix, and every prefix is as short as it can be.
    ``not_expressed`` says what of the plan is not in them.

    Args:
        plan: the plan.
        program: the traced model.  With it any number of values may cross a cut; a cut that accelerate's hooks cannot
            make is moved to the next end of a block, and that is said.

    Raises:
        UsageError: the plan says what a device_map cannot: a cut inside a block, several nodes, several CPUs; or the
            plan file does not list the stages' weights.
    """
    words = _device_words(plan)
    remarks = _remarks(plan, words)
    if program is None:
        for before, after in pairwise(plan.stages):
            _check_cut(plan, before, after)
    owners = _owners(plan, words)
    if program is not None and (conflict := first_conflict(program, _merged(owners))):
        whole = units_of(plan)
        homes = {unit.name: words[plan.stages[unit.stage].devices[0]] for unit in whole.units}
        owners = _in_whole_blocks(owners, homes)
        remarks += whole.remarks
        if conflict_left := first_conflict(program, _merged(owners)):
            raise UsageError(f"a device_map cannot express this plan: {conflict_left}; {_INSTEAD}")
        assert whole.remarks, f"nothing was moved, and yet the conflict is gone: {conflict}"
    max_memory = {str(words[name]): stage.capacity_bytes for stage in plan.stages for name in stage.devices}
    document = {"device_map": _merged(owners), "max_memory": max_memory, "not_expressed": remarks}
    return json.dumps(document, indent=2) + "\n"


def _remarks(plan: Plan, words: dict[str, DeviceWord]) -> list[str]:
    remarks = [
        f"micro-batches and schedule: accelerate runs one device after the other, not the plan's "
        f"{plan.schedule.num_microbatches} micro-batches"
    ]
    if len(words) > 1 and "cpu" in words.values():
        remarks.append("computing on the cpu: beside GPUs accelerate keeps weights there and computes on the first GPU")
    return remarks


def _device_words(plan: Plan) -> dict[str, DeviceWord]:
    """What accelerate calls each used device: GPUs by number, the CPU ``cpu``."""
    used = [plan.cluster.device(name) for stage in plan.stages for name in stage.devices]
    wide = [stage.index for stage in plan.stages if len(stage.devices) > 1]
    if wide:
        raise UsageError(f"a device_map cannot share stage {wide[0]} between devices; plan --tensor-parallel 1")
    nodes = sorted({device.node for device in used})
    if len(nodes) > 1:
        raise UsageError(f"accelerate runs on one machine, the plan uses {len(nodes)} ({', '.join(nodes)}); {_INSTEAD}")
    absent = [device.name for device in used if device.backend == "absent" and not is_cpu(device)]
    words: dict[str, DeviceWord] = {device.name: _word(device, absent) for device in used}
    if len(set(words.values())) < len(words):
        raise UsageError(f"accelerate knows one cpu, the plan uses {len(words)} devices on it; {_INSTEAD}")
    return words


def _word(device: Device, absent: list[str]) -> DeviceWord:
    if is_cpu(device):
        return "cpu"
    if device.backend == "cuda":
        return int((device.torch_device or device.name).rpartition(":")[2])
    return absent.index(device.name)


def _check_cut(plan: Plan, before: Stage, after: Stage) -> None:
    where = f"the cut between {before.layers[-1]} and {after.layers[0]}"
    num_tensors = sum(each.to_stage == after.index for each in plan.transfers)
    instead = "give the model after the plan, which shows what can be done, or export --to torch"
    if num_tensors > 1:
        raise UsageError(
            f"whether a device_map can express {where} is not to be seen in the plan: {num_tensors} values cross it; "
            f"{instead}"
        )
    paths = zip(_path(before.layers[-1]).split("."), _path(after.layers[0]).split("."), strict=False)
    depth, (one, other) = next(
        ((depth, pair) for depth, pair in enumerate(paths) if pair[0] != pair[1]), (-1, ("", ""))
    )
    if depth != 0 and not (one.isdigit() and other.isdigit()):
        raise UsageError(f"a device_map cannot express {where}: it lies inside a block; {instead}")


def _owners(plan: Plan, words: dict[str, DeviceWord]) -> dict[str, DeviceWord]:
    """The device of every weight and of every layer."""
    if not any(stage.weights for stage in plan.stages):
        raise UsageError("this plan does not list its stages' weights; make it anew with this autopart")
    owners: dict[str, DeviceWord] = {}
    for stage in plan.stages:
        word = words[stage.devices[0]]
        for weight in stage.weights:
            if owners.setdefault(weight, word) != word:
                raise UsageError(f"a device_map cannot put {weight}, which two stages share, on both; {_INSTEAD}")
        for layer in stage.layers:
            if owners.setdefault(_path(layer), word) != word:
                raise UsageError(f"a device_map cannot run {_path(layer)} on two devices; {_INSTEAD}")
    return owners


def _in_whole_blocks(owners: dict[str, DeviceWord], blocks: dict[str, DeviceWord]) -> dict[str, DeviceWord]:
    """The owners with everything under a block where the block is."""
    return {
        path: next((blocks[prefix] for prefix in _prefixes(path) if prefix in blocks), owner)
        for path, owner in owners.items()
    }


def _path(layer: str) -> str:
    """The module behind a layer: the second call of one module is ``path@2``."""
    return layer.partition("@")[0]


def _merged(owners: dict[str, DeviceWord]) -> dict[str, DeviceWord]:
    """The shortest prefixes under which everything lies on one device, in order of first use."""
    below: dict[str, set[DeviceWord]] = {}
    for path, owner in owners.items():
        for prefix in _prefixes(path):
            below.setdefault(prefix, set()).add(owner)
    merged: dict[str, DeviceWord] = {}
    for path, owner in owners.items():
        # a layer with parts on several devices has no such prefix: its weights stand for themselves
        alone = [prefix for prefix in _prefixes(path) if len(below[prefix]) == 1]
        merged.update(dict.fromkeys(alone[:1], owner))
    return merged


def _prefixes(path: str) -> list[str]:
    pieces = path.split(".")
    return [".".join(pieces[:depth]) for depth in range(1, len(pieces) + 1)]
