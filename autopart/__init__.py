"""autopart: plan how a PyTorch model is spread over the devices you have.

    plan = autopart.plan(model, (x,), devices="2xh100-sxm-80gb,4xt4", mode="train", batch=64)
    split = autopart.split(model, (x,), devices=["cuda:0", "cuda:1"])

Names are loaded on first use (PEP 562), so that ``import autopart`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopart.api import compare as compare
    from autopart.api import fit as fit
    from autopart.api import load_checkpoint as load_checkpoint
    from autopart.api import pipeline as pipeline
    from autopart.api import plan as plan
    from autopart.api import plan_top as plan_top
    from autopart.api import split as split
    from autopart.api import trace as trace
    from autopart.api import verify as verify
    from autopart.errors import AutopartError as AutopartError
    from autopart.errors import DeviceError as DeviceError
    from autopart.errors import FileFormatError as FileFormatError
    from autopart.errors import InfeasibleError as InfeasibleError
    from autopart.errors import MismatchError as MismatchError
    from autopart.errors import ModelSourceError as ModelSourceError
    from autopart.errors import RunError as RunError
    from autopart.errors import TracingError as TracingError
    from autopart.errors import UsageError as UsageError
    from autopart.schema.store import load_plan as load_plan
    from autopart.schema.store import save_plan as save_plan

_HOMES = {
    "autopart.api": ("compare", "fit", "load_checkpoint", "pipeline", "plan", "plan_top", "split", "trace", "verify"),
    "autopart.errors": (
        "AutopartError", "DeviceError", "FileFormatError", "InfeasibleError", "MismatchError", "ModelSourceError",
        "RunError", "TracingError", "UsageError",
    ),
    "autopart.schema.store": ("load_plan", "save_plan"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'autopart' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
