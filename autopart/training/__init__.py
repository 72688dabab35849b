"""Training a planned model: in one process, as one rank under torchrun, or with processes of its own that may fail.

It stands on the room ``running`` and on the verbs, which plan anew after a failure.  Its parts are loaded on first use
(PEP 562): a rank does without those that start ranks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopart.training.fitting import fit
    from autopart.training.loading import load_checkpoint
    from autopart.training.session import Elastic, Order, train

__all__ = ["Elastic", "Order", "fit", "load_checkpoint", "train"]

_HOMES = {
    "Elastic": "session", "Order": "session", "fit": "fitting", "load_checkpoint": "loading", "train": "session",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopart.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autopart.training.{_HOMES[name]}"), name)
