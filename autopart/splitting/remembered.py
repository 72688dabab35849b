"""Which checks passed before, so that nobody waits for them again.

A check is known by all that its outcome follows from: the traced graph, the cuts, the devices, and the code.
"""

from __future__ import annotations

import hashlib

from torch import nn

from autopart import cache
from autopart.keying import code_key
from autopart.schema.graph import Graph
from autopart.schema.plan import Check
from autopart.schema.store import dump

__all__ = ["passed_before", "remember"]

_SECTION = "checks"


def passed_before(
    name: str, graph: Graph, model: nn.Module, boundaries: tuple[int, ...], where: tuple[str, ...]
) -> Check | None:
    """The check of this name, if it passed before for this graph cut at ``boundaries`` onto devices ``where``."""
    key = _key(name, graph, model, boundaries, where)
    found = cache.read(_SECTION, key) if key else None
    return Check(name=name, outcome="passed", detail=found.decode()) if found else None  # type: ignore[arg-type]


def remember(
    graph: Graph, model: nn.Module, boundaries: tuple[int, ...], where: tuple[str, ...], check: Check
) -> None:
    """Keep a check that passed; nothing is kept of models whose source is in no file."""
    key = _key(check.name, graph, model, boundaries, where)
    if key:
        cache.write(_SECTION, key, check.detail.encode())


def _key(
    name: str, graph: Graph, model: nn.Module, boundaries: tuple[int, ...], where: tuple[str, ...]
) -> tuple[str, ...]:
    """Empty if the code is not known."""
    code = code_key(model)
    if not code:
        return ()
    return (name, hashlib.sha256(dump(graph).encode()).hexdigest(), str(boundaries), *where, code)
