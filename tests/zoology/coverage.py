"""docs/coverage.md, written from the results."""

from __future__ import annotations

import collections
import datetime
import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from tests.zoology.result import Result
from tests.zoology.tables import families, sentence

__all__ = ["markdown"]

_INTRODUCTION = """# Coverage: what autopart splits, and what it refuses

Written by `python -m tests.benchmarks.zoo --markdown`, {date}; {keys}.

Each specimen is a real architecture made small (transformers: four blocks, width 64; timm: the smallest variant of
every family; torchvision: as published; images of 32 to 224 pixels, batch 2), with random weights, on the processor.
In train and in eval mode it is traced, split evenly in 2 and in 4 stages, and run from the same random state as the
unsplit model. **Every output, every gradient and every buffer must be equal bit by bit; there is no tolerance.** A
specimen counts as split if all four are. Each runs in a process of its own with limits of time and memory;
`tests/zoology` builds them.

{sentence}{modes}
"""


def markdown(results: Sequence[Result], rivals: Sequence[Result], *, num_open: int) -> str:
    """The page; ``num_open`` specimens have not been examined."""
    parts = [
        _INTRODUCTION.format(
            date=datetime.date.today().isoformat(), keys="; ".join(_keys(results)), sentence=sentence(results),
            modes=_train_only(results) + _open(num_open),
        ),
        families(results, "github"),
        _tracers(results),
        *_wrong(results),
        "## What is refused, or stays on one device, and why",
        _by_reason(results, ("refused", "one device", "unsteady")),
        "## torch's own `pipeline()` on the same models",
        _beside(results, rivals),
        "## What is split",
        *_split(results),
        "## What the zoo could not build",
        "No small configuration, or no inputs, were found for these; they count nowhere: " + _not_built(results) + ".",
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _train_only(results: Iterable[Result]) -> str:
    """Says so if eval mode is yet to be examined."""
    count = sum(bool(each.checks) and {check.mode for check in each.checks} == {"train"} for each in results)
    return f" Of them {count} have been examined in train mode only." if count else ""


def _open(number: int) -> str:
    return f" **This is a part of the zoo: {number} specimens have not been examined yet.**" if number else ""


def _tracers(results: Iterable[Result]) -> str:
    """How many traces each tracer made."""
    checks = ((each.name, check) for each in results for check in each.checks if check.tracer)
    traces = {(name, check.mode): check.tracer for name, check in checks}
    count = collections.Counter(traces.values())
    found = ", ".join(f"{name} {number}" for name, number in count.most_common())
    return f"Traces by tracer: {found or 'none'}."


def _keys(results: Iterable[Result]) -> list[str]:
    """Versions and code; more than one if the results are of several states of the code."""
    by_versions: dict[str, list[str]] = {}
    for each in results:
        versions, _, code = each.key.partition("; code ")
        known = by_versions.setdefault(versions, [])
        if code not in known:
            known.append(code)
    return [f"{versions}, code {', '.join(codes)}" for versions, codes in by_versions.items()]


def _wrong(results: Sequence[Result]) -> list[str]:
    bad = [each for each in results if each.verdict in ("WRONG", "crash", "killed")]
    if not bad:
        return []
    rows = [(each.name, each.verdict, _cell(each.reason)) for each in bad]
    return ["## Defects", tabulate(rows, headers=["specimen", "verdict", "what"], tablefmt="github")]


def _by_reason(results: Sequence[Result], verdicts: Sequence[str]) -> str:
    groups: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for each in results:
        if each.verdict in verdicts:
            modes = sorted({check.mode for check in each.checks if check.verdict == each.verdict})
            groups[f"{each.verdict} ({', '.join(modes)})", _general(each.reason)].append(_kind(each))
    rows = [(verdict, reason, ", ".join(names)) for (verdict, reason), names in sorted(groups.items(), key=_weight)]
    return tabulate(rows, headers=["verdict", "reason", "models"], tablefmt="github") if rows else "Nothing."


def _weight(item: tuple[tuple[str, str], list[str]]) -> int:
    return -len(item[1])


def _general(reason: str) -> str:
    """Without paths and names of classes, so that equal causes meet."""
    reason = re.sub(r"\S*/site-packages/", "", reason)
    reason = re.sub(r"cannot trace \w+: ", "", reason)
    return _cell(reason)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:220]


def _kind(result: Result) -> str:
    return result.name.partition(":")[2]


def _beside(results: Sequence[Result], rivals: Sequence[Result]) -> str:
    """Verdicts of both on the models that both examined."""
    mine = {each.name: each for each in results if each.verdict != "not built"}
    both = [each for each in rivals if each.name in mine and each.verdict != "not built"]
    if not both:
        return "Not run."
    count = collections.Counter(each.verdict for each in both)
    equal = sum(mine[each.name].verdict == "equal" for each in both)
    rows = [(verdict, number, f"{number / len(both):.0%}") for verdict, number in count.most_common()]
    return (
        f"On {len(both)} of them, two stages, train mode, forward and gradients, without "
        f"key-value caches (it cannot capture them), run by an interpreter of its graph: `pipeline()` is right on "
        f"{count['equal']}, autopart on {equal} (in 2 and 4 stages, both modes).\n\n"
        + tabulate(rows, headers=["pipeline()", "models", "share"], tablefmt="github")
    )


def _split(results: Sequence[Result]) -> list[str]:
    names: dict[str, list[str]] = {}
    for each in results:
        if each.verdict == "equal":
            names.setdefault(each.name.partition(":")[0], []).append(_kind(each))
    return [f"**{family}** ({len(own)}): {', '.join(sorted(own))}." for family, own in names.items()]


def _not_built(results: Sequence[Result]) -> str:
    return ", ".join(sorted(each.name for each in results if each.verdict == "not built")) or "none"
