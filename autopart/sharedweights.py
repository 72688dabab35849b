"""Which weights the devices of a stage divide where they share its layers, and which each of them has whole."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace

from autopart import cache, sharding
from autopart.keying import code_key
from autopart.program import Program
from autopart.schema.graph import Graph
from autopart.schema.store import dump
from autopart.tracecache import Traced

__all__ = ["most_devices", "with_most_devices"]

_SECTION = "shares"


def most_devices(trace: Traced, limit: int) -> dict[str, int]:
    """Of every weight, by name, the most of 1, 2, 4, ... ``limit`` devices that divide it; kept on disk for next time.

    The model is traced for it where its graph came from the cache.

    Raises:
        StaleTraceError: a trace gives another graph now.
    """
    code = code_key(trace.source.model)
    key = (hashlib.sha256(dump(trace.graph).encode()).hexdigest(), str(limit), code) if code else ()
    found = _read(key)
    if found is None:
        _, program = trace.live()
        found = _by_rewriting(program, limit)
        if key:
            cache.write(_SECTION, key, json.dumps(found).encode())
    return found


def with_most_devices(graph: Graph, known: Mapping[str, int]) -> Graph:
    """The graph with what is known of its weights, by name; the graph itself where nothing is."""
    if not known:
        return graph
    return replace(graph, weights=tuple(replace(each, most_devices=known.get(each.name)) for each in graph.weights))


def _by_rewriting(program: Program, limit: int) -> dict[str, int]:
    """By sharing the model as one stage, among more and more devices; a weight that is whole once stays so."""
    found = dict.fromkeys((weight.name for weight in program.graph.weights), 1)
    count = 2
    while count <= limit:
        divided = sharding.sharded_weights(program, count)
        found |= {name: count for name, most in found.items() if most == count // 2 and name in divided}
        count *= 2
    return found


def _read(key: tuple[str, ...]) -> dict[str, int] | None:
    content = cache.read(_SECTION, key) if key else None
    if content is None:
        return None
    try:
        known = json.loads(content)
    except ValueError as error:
        warnings.warn(f"the cached shares of a model cannot be read ({error}); they are made anew", stacklevel=2)
        return None
    return {str(name): int(count) for name, count in known.items()}
