"""Traces on disk: the graph of a model that is as it was before, without tracing it again.

Only graphs that torch.export made alone are kept: they follow from code, structure and shapes (see ``modelkey``).
What was recorded on real tensors is traced anew each time.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autopart import cache, weightless
from autopart.codekey import file_digest, loaded_files
from autopart.errors import FileFormatError, TracingError
from autopart.modelkey import model_key
from autopart.modelsource import Source, file_of, with_weights
from autopart.program import Program
from autopart.schema.graph import Graph
from autopart.schema.store import dump, parse

__all__ = ["StaleTraceError", "Traced", "trace_source", "traced"]

CPU = torch.device("cpu")
_SECTION = "graphs"
_TRACER = "torch.export"
"""of a graph in which no part of the model is opaque"""


class StaleTraceError(TracingError):
    """The graph in the cache is not what a trace gives now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the cache holds."""

    graph: Graph
    num_operators: int
    files: tuple[tuple[str, str], ...]
    """those that were first loaded during the trace, with hashes of their contents"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A source's graph; its program when somebody asks for it."""

    source: Source
    """whose model may be without weights as long as nobody has asked"""
    graph: Graph
    num_operators: int
    live: Callable[[], tuple[Source, Program]]
    """the source with its weights, and its program; raises StaleTraceError"""

    @property
    def device(self) -> torch.device:
        """Where the weights are, or would be."""
        here = CPU if self.source.weightless else None
        return here or next((tensor.device for tensor in self.source.model.state_dict().values()), CPU)

    @property
    def has_values(self) -> bool:
        """Whether the weights have values, or would have."""
        model = self.source.model
        return self.source.weightless or not any(each.is_meta for each in (*model.parameters(), *model.buffers()))


def trace_source(source: Source, *, training: bool, opaque: Sequence[str] = ()) -> Program:
    """The source's model as layers with their costs."""
    from autopart import tracing  # takes as long to import as torch: only who traces waits for it

    program = tracing.trace(
        source.model, source.args, source.kwargs, training=training, name=source.name, opaque=opaque
    )
    if not training or source.loss_fn is None:
        return program
    return tracing.with_loss(program, source.loss_fn, source.targets or ())


def traced(source: Source, *, training: bool, opaque: Sequence[str] = (), fresh: bool = False) -> Traced:
    """The source traced, or its graph from the cache.

    Args:
        source: with weights or built without.
        training: the mode to trace in.
        opaque: modules not to be looked into; then nothing is read or kept.
        fresh: trace it even if the graph is in the cache.

    Raises:
        TracingError: the model cannot be captured.
    """
    key = () if opaque else _key(source, training)
    entry = None if fresh or not key else _read(key)
    if entry is None and source.weightless:
        return traced(with_weights(source), training=training, opaque=opaque, fresh=fresh)
    if entry is None:
        program = _trace(source, training, opaque, key)
        return Traced(
            source=source, graph=program.graph, num_operators=len(program.captured.graph.nodes),
            live=lambda: (source, program),
        )  # fmt: skip

    @functools.cache
    def live() -> tuple[Source, Program]:
        real = with_weights(source)
        program = _trace(real, training, opaque, key)
        if program.graph != entry.graph:
            raise StaleTraceError(f"the kept trace of {source.name} is not what a trace gives now")
        return real, program

    return Traced(source=source, graph=entry.graph, num_operators=entry.num_operators, live=live)


def _key(source: Source, training: bool) -> tuple[str, ...]:
    loss = (source.loss_fn, source.targets) if training else None
    return model_key(
        source.model, source.args, source.kwargs, training=training, name=source.name, loss=loss,
        stands_for="cpu" if source.weightless else "",
    )  # fmt: skip


def _trace(source: Source, training: bool, opaque: Sequence[str], key: tuple[str, ...]) -> Program:
    """The program, its graph kept under ``key``."""
    before = set(loaded_files())
    program = trace_source(source, training=training, opaque=opaque)
    if key and program.graph.tracer == _TRACER:
        late = tuple((path, file_digest(path)) for path in loaded_files() if path not in before)
        entry = Entry(graph=program.graph, num_operators=len(program.captured.graph.nodes), files=late)
        cache.write(_SECTION, key, dump(entry).encode())
        file = file_of(source.text)
        if file is not None and file.is_file():
            weightless.remember(file)
    return program


def _read(key: tuple[str, ...]) -> Entry | None:
    content = cache.read(_SECTION, key)
    if content is None:
        return None
    try:
        entry = parse(Entry, content.decode(), where="the cached graph")
    except (FileFormatError, UnicodeDecodeError) as error:
        warnings.warn(f"{error}; the model is traced anew", stacklevel=2)
        return None
    return entry if all(file_digest(path) == digest for path, digest in entry.files) else None
