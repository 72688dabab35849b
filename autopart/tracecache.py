"""Traces on disk: the graph of a model that is as it was before, without tracing it again.

Only graphs that torch.export made alone are kept: they follow from code, structure and shapes (see ``keying``).
What was recorded on real tensors is traced anew each time.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autopart import cache, weightless
from autopart.batchlaw import at_batch
from autopart.errors import FileFormatError, TracingError
from autopart.keying import file_digest, loaded_files, model_key
from autopart.modelsource import Source, batch_of, file_of, with_weights
from autopart.program import Program
from autopart.schema.graph import Graph
from autopart.schema.store import dump, parse

__all__ = ["StaleTraceError", "Traced", "derived", "kept", "trace_source", "traced"]

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
    is_derived: bool = False
    """by ``derived``: what follows from it is to be settled by a trace"""

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
    known = None if fresh else kept(source, training=training, opaque=opaque)
    if known is not None:
        return known
    source = with_weights(source)
    program = _trace(source, training, opaque)
    return Traced(
        source=source, graph=program.graph, num_operators=len(program.captured.graph.nodes),
        live=lambda: (source, program),
    )  # fmt: skip


def kept(source: Source, *, training: bool, opaque: Sequence[str] = ()) -> Traced | None:
    """What ``traced`` gives, if it is in the cache."""
    key = () if opaque else _key(source, training)
    entry = _read(key) if key else None
    if entry is None:
        return None
    graph, live = entry.graph, _traced_as(entry.graph, source, training)
    return Traced(source=source, graph=graph, num_operators=entry.num_operators, live=live)


def derived(source: Source, one: Traced, other: Traced) -> Traced | None:
    """The source's trace by those of the same model with two other batches; None if they do not say what it is.

    It is never kept on disk.  Who asks for its program has it traced, and StaleTraceError if it is another.
    """
    if {one.graph.tracer, other.graph.tracer} != {_TRACER}:
        return None
    graph = at_batch(one.graph, other.graph, batch_of(source))
    if graph is None:
        return None
    live = _traced_as(graph, source, graph.training)
    return Traced(
        source=source, graph=graph, num_operators=max(one.num_operators, other.num_operators), live=live,
        is_derived=True,
    )  # fmt: skip


def _traced_as(graph: Graph, source: Source, training: bool) -> Callable[[], tuple[Source, Program]]:
    """Traces when it is called first, and raises StaleTraceError if another graph comes out."""

    @functools.cache
    def live() -> tuple[Source, Program]:
        real = with_weights(source)
        program = _trace(real, training)
        if program.graph != graph:
            raise StaleTraceError(f"the kept trace of {source.name} is not what a trace gives now")
        return real, program

    return live


def _key(source: Source, training: bool) -> tuple[str, ...]:
    loss = (source.loss_fn, source.targets) if training else None
    return model_key(
        source.model, source.args, source.kwargs, training=training, name=source.name, loss=loss,
        stands_for="cpu" if source.weightless else "",
    )  # fmt: skip


def _trace(source: Source, training: bool, opaque: Sequence[str] = ()) -> Program:
    """The program, its graph kept if it can be."""
    key = () if opaque else _key(source, training)
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
