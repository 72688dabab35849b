"""Running a plan: in one process, as one rank under torchrun, or measured from outside with its own processes.

What needs torch.distributed.pipelining is loaded on first use (PEP 562): its import takes longer than torch's own, and
planning, the launcher and the single-device run do without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autopart.running.execute import Batch, drop_weights, run_steps
from autopart.running.group import join_group
from autopart.running.layertimes import with_layer_seconds
from autopart.running.lifetime import end_with_parent
from autopart.running.local import LocalPipeline
from autopart.running.memory import meter_for
from autopart.running.records import (
    RankFailure,
    RankResult,
    RankSpec,
    failure_path,
    progress_path,
    result_path,
)
from autopart.running.session import best_single_device, run
from autopart.running.stages import rank_weights, stage_device, stage_weights
from autopart.running.stopwatch import stopwatch_for
from autopart.running.turns import turn_after
from autopart.running.unsplit import UnsplitModel

if TYPE_CHECKING:
    from autopart.running.distributed import DistributedPipeline
    from autopart.running.local_or_distributed import pipeline

__all__ = [
    "Batch",
    "DistributedPipeline",
    "LocalPipeline",
    "RankFailure",
    "RankResult",
    "RankSpec",
    "UnsplitModel",
    "best_single_device",
    "drop_weights",
    "end_with_parent",
    "failure_path",
    "join_group",
    "meter_for",
    "pipeline",
    "progress_path",
    "rank_weights",
    "result_path",
    "run",
    "run_steps",
    "stage_device",
    "stage_weights",
    "stopwatch_for",
    "turn_after",
    "with_layer_seconds",
]

_LATER = {"DistributedPipeline": "autopart.running.distributed", "pipeline": "autopart.running.local_or_distributed"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'autopart.running' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
