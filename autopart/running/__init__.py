"""Running a plan: in one process, as one rank under torchrun, or measured from outside with its own processes.

What needs torch.distributed.pipelining is loaded on first use (PEP 562): its import takes longer than torch's own, and
planning, the launcher and the single-device run do without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autopart.running.emulating.emulate import TimetablePace, timetable
from autopart.running.emulating.memorycap import MemoryCap, cap_of
from autopart.running.emulating.quota import check_quota, cpu_quota, find_quota_root
from autopart.running.emulation import emulated_plan, emulation_notes
from autopart.running.execute import Batch, drop_weights, run_steps, versions
from autopart.running.group import join_group
from autopart.running.inprocess.local import LocalPipeline
from autopart.running.launching.failures import failure_of
from autopart.running.launching.launch import Ranks
from autopart.running.launching.lifetime import end_with_parent
from autopart.running.launching.records import (
    RankFailure,
    RankResult,
    RankSpec,
    Throttle,
    failure_path,
    progress_path,
    result_path,
)
from autopart.running.launching.session import best_single_device, run
from autopart.running.launching.turns import turn_after
from autopart.running.layertimes import with_layer_seconds
from autopart.running.loss import LossFunction, Objective
from autopart.running.memory import meter_for
from autopart.running.mesh import (
    Seat,
    num_replicas,
    own_process,
    process_device,
    process_devices,
    samples_per_replica,
    seats,
)
from autopart.running.optimizers import OptimizerChoice, check_optimizer, make_optimizer
from autopart.running.stages import rank_weights, stage_device, stage_weights
from autopart.running.stopwatch import HostStopwatch, Stopwatch, stopwatch_for
from autopart.running.unsplit import UnsplitModel

if TYPE_CHECKING:
    from autopart.running.distributed import DistributedPipeline
    from autopart.running.local_or_distributed import pipeline

__all__ = [
    "Batch",
    "DistributedPipeline",
    "HostStopwatch",
    "LocalPipeline",
    "LossFunction",
    "MemoryCap",
    "Objective",
    "OptimizerChoice",
    "RankFailure",
    "RankResult",
    "RankSpec",
    "Ranks",
    "Seat",
    "Stopwatch",
    "Throttle",
    "TimetablePace",
    "UnsplitModel",
    "best_single_device",
    "cap_of",
    "check_optimizer",
    "check_quota",
    "cpu_quota",
    "drop_weights",
    "emulated_plan",
    "emulation_notes",
    "end_with_parent",
    "failure_of",
    "failure_path",
    "find_quota_root",
    "join_group",
    "make_optimizer",
    "meter_for",
    "num_replicas",
    "own_process",
    "pipeline",
    "process_device",
    "process_devices",
    "progress_path",
    "rank_weights",
    "result_path",
    "run",
    "run_steps",
    "samples_per_replica",
    "seats",
    "stage_device",
    "stage_weights",
    "stopwatch_for",
    "timetable",
    "turn_after",
    "versions",
    "with_layer_seconds",
]

_LATER = {"DistributedPipeline": "autopart.running.distributed", "pipeline": "autopart.running.local_or_distributed"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'autopart.running' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
