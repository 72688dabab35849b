"""The ladder of tracers: try to look into everything, then step down where the model's code does not allow it.

Each step down makes one more module opaque, the innermost one whose code the tracer failed at, so that everything
around it is still traced operator by operator; at the foot the whole model is one opaque layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import fx, nn

from autopart.errors import TracingError
from autopart.schema.graph import Note
from autopart.tracing.asking import Asker, answered_as_eager, asker_of
from autopart.tracing.capture import capture
from autopart.tracing.culprit import Suspect, first_line, last_lines, place_of, suspects
from autopart.tracing.sites import WHOLE_CALL, CannotTraceError, Site

__all__ = ["Captured", "climb_down"]

MOST_DEMOTIONS = 16
"""after as many steps the whole model becomes opaque: every step costs one more trace"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A captured graph, what captured it, and what had to be given up for that."""

    module: fx.GraphModule
    tracer: str
    notes: tuple[Note, ...]


def climb_down(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool, opaque: Sequence[str] = ()
) -> Captured:
    """The model's graph by the first tracer that can make one; the modules named in ``opaque`` are so from the start.

    Raises:
        TracingError: not even a run of the whole model as one layer can be recorded.
    """
    descent = _Descent(model, [_call_of(model.get_submodule(name), name) for name in opaque])
    while True:
        with answered_as_eager(descent.told) as asked:
            try:
                module = capture(model, args, kwargs, training=training, opaque=tuple(descent.sites))
            except TracingError:
                raise
            except Exception as error:
                asker = asker_of(error, asked)
                descent.tell(asker, error) if asker else descent.step_down(error)
                continue
            return Captured(module=module, tracer=descent.tracer, notes=tuple(descent.notes.values()))


class _Descent:
    """What is opaque so far, and why."""

    def __init__(self, model: nn.Module, sites: list[Site]) -> None:
        self.sites = sites
        self.notes: dict[str, Note] = {}
        """by the label of the site that they are about"""
        self.told: set[CodeType] = set()
        """functions that learn that they are traced, as the way that they take untraced cannot be"""
        self._model, self._whole = model, _call_of(model)
        self._refused: list[Site] = []
        self._causes: dict[str, Exception] = {}

    @property
    def tracer(self) -> str:
        """What captures the model now."""
        if self._whole in self.sites:
            return "whole model"
        return "torch.export, opaque parts" if self.sites else "torch.export"

    def tell(self, asker: Asker, error: Exception) -> None:
        """Let a function take the way that it has for traces."""
        self.told.add(asker.code)
        name = asker.code.co_qualname
        self.notes[name] = Note(
            code="as-traced", where=asker.place, suggestion="verify the split",
            message=f"{name} has another way for traces, which is taken: its own cannot be: {first_line(error)}",
        )

    def step_down(self, error: Exception) -> None:
        """Make one part more opaque; the one that the error came from.

        Raises:
            TracingError: the whole model is already.
        """
        if self._whole in self.sites:
            raise _hopeless(self._model, error) from error
        cause = error
        if isinstance(error, CannotTraceError) and error.site is not None:  # what is around it goes in its place
            self._refused.append(error.site)
            self.sites = [site for site in self.sites if site != error.site]
            self.notes.pop(error.site.label, None)
            cause = self._causes.get(error.site.label, error)
        known = (*self.sites, *self._refused)
        candidates = [site for site in _candidates(self._model, error) if site not in known]
        if not candidates and not known:
            self._take_children(cause)
        elif not candidates or candidates[0] == self._whole or len(self._causes) >= MOST_DEMOTIONS:
            self._take_all(cause)
        else:
            self._take(candidates[0], cause)

    def _take(self, site: Site, cause: Exception) -> None:
        added = _alike(self._model, self.sites, site)
        outer = [new.module for new in added if new.name == WHOLE_CALL and new.module is not None]
        inside = {inner for module in outer for inner in module.modules()}
        self.sites = [each for each in self.sites if each.module not in inside] + added
        others = f" and {len(added) - 1} more of its kind" if len(added) > 1 else ""
        text = f"{site.label}{others} runs as it is written, as one layer, because it cannot be traced"
        self._causes[site.label] = cause
        self.notes[site.label] = _note("opaque-part", text, cause)

    def _take_all(self, cause: Exception) -> None:
        self.sites = [self._whole]
        text = f"all of {self._whole.label} is one layer, as its own code cannot be traced"
        self.notes[self._whole.label] = _note("whole-model", text, cause)

    def _take_children(self, cause: Exception) -> None:
        """The tracer itself fails, at none of the model's lines: perhaps not if it need not look into submodules."""
        self.sites = list(_called_children(self._model, ""))
        text = "torch.export itself fails, so the submodules are opaque layers in turn"
        self.notes[self._whole.label] = _note("module-chain", text, cause)


def _call_of(module: nn.Module, path: str = "") -> Site:
    return Site(label=path or type(module).__name__, name=WHOLE_CALL, module=module)


def _site_of(module: nn.Module, path: str, name: str) -> Site:
    """Calls of a module, or of one of its methods."""
    return _call_of(module, path) if name == WHOLE_CALL else Site(
        label=f"{path or 'model'}.{name}()", name=name, module=module
    )


def _candidates(model: nn.Module, error: Exception) -> list[Site]:
    """What could be made opaque, best first: methods of modules inside the innermost called one, then that one.

    Where it is most of the model, its own functions that were running come before it too, innermost first.
    """
    names = {module: name for name, module in model.named_modules()}
    if isinstance(error, CannotTraceError) and error.module is not None:
        return [_call_of(error.module, names[error.module])]
    sites = [site for each in suspects(model, error) if (site := _site(each, names)) is not None]
    modules = [site for site in sites if site.name == WHOLE_CALL]
    if not modules:
        return modules
    functions, innermost = sites[: sites.index(modules[0])], modules[0].module
    if 2 * _size(innermost) <= _size(model):
        functions = [site for site in functions if site.module is not None and site.module is not innermost]
    return functions + modules


def _site(suspect: Suspect, names: Mapping[nn.Module, str]) -> Site | None:
    """Where to intercept a function; None if callers do not find it by name."""
    name, owner = suspect.code.co_name, suspect.owner
    if owner is not None:
        if name == WHOLE_CALL:
            return _call_of(owner, names[owner])
        found = getattr(getattr(type(owner), name, None), "__code__", None) is suspect.code and name != "forward"
        return _site_of(owner, names[owner], name) if found else None
    for namespace in suspect.callers:
        if getattr(namespace.get(name), "__code__", None) is suspect.code:
            return Site(label=f"{name}()", name=name, namespace=namespace)
    return None


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(weight.numel() for weight in module.parameters())


def _alike(model: nn.Module, opaque: Sequence[Site], site: Site) -> list[Site]:
    """The site; and those of all modules of its class, once a second one of them fails."""
    kind: Any = type(site.module)
    if site.module is None or not any(type(each.module) is kind and each.name == site.name for each in opaque):
        return [site]
    alike = {each: name for name, each in model.named_modules() if type(each) is kind}
    inner = {below for each in alike for below in each.modules() if below is not each}
    others = (_site_of(each, name, site.name) for each, name in alike.items() if each not in inner)
    return [site, *(other for other in others if other != site and other not in opaque)]


def _called_children(module: nn.Module, path: str) -> Iterator[Site]:
    """The direct submodules; of lists and dicts of modules, which are never called, those in them."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _called_children(child, f"{path}{name}.")
        else:
            yield _call_of(child, path + name)


def _note(code: str, text: str, cause: Exception) -> Note:
    advice = "make that line independent of tensor values" if "data-dependent" in str(cause) else "change that line"
    return Note(code=code, message=f"{text}: {first_line(cause)}", suggestion=advice, where=place_of(cause))


def _hopeless(model: nn.Module, error: Exception) -> TracingError:
    where = place_of(error)
    return TracingError(
        f"cannot trace {type(model).__name__}: it fails{' at ' + where if where else ''} even as one layer: "
        f"{first_line(error)}; see that the model runs on these inputs",
        detail=last_lines(error),
    )
