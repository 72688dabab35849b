"""The terms of a stage's memory by their names for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from autopart.schema.plan import Memory
from autopart.units import format_bytes

__all__ = ["memory_columns", "memory_rows"]


_NAMES = {"loss": "outputs, loss", "not_at_once": "not at once", "kv_cache": "key-value cache"}


def _terms(memory: Memory) -> dict[str, int]:
    """Every field by its name for people; what is never there together counts against the sum."""
    sizes = {field.name: getattr(memory, field.name) for field in dataclasses.fields(memory)}
    sizes["not_at_once"] = -sizes["not_at_once"]
    return {_NAMES.get(name, name.replace("_", " ")): num_bytes for name, num_bytes in sizes.items()}


def memory_rows(memory: Memory) -> list[tuple[str, str]]:
    """The terms that are not zero, with their sizes."""
    return [(name, format_bytes(num_bytes)) for name, num_bytes in _terms(memory).items() if num_bytes]


def memory_columns(memories: Sequence[Memory]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names of the terms that any stage has, and a row of sizes for each stage."""
    terms = [_terms(memory) for memory in memories]
    names = tuple(name for name in (terms[0] if terms else {}) if any(each[name] for each in terms))
    return names, tuple(tuple(format_bytes(each[name]) for name in names) for each in terms)
