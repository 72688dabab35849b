"""docs/coverage.md, written from the results."""

from __future__ import annotations

import collections
import datetime
import re
import textwrap
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from tests.zoology.result import ORDER, Result
from tests.zoology.tables import families, sentence

__all__ = ["markdown", "short"]

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
_TITLES = {
    "hf": "transformers", "timm": "timm", "torchvision": "torchvision", "unet": "U-Nets",
    "hazard": "Hazards: small modules, each with one thing that breaks tracers",
}  # fmt: skip
_WIDTH, _LONGEST = 116, 150
_NOISE: tuple[tuple[str, str], ...] = (
    (r"\S*/site-packages/", ""),
    (r"(?<![\w.:/])/(?:[^\s/]+/)+", ""),  # directories of the machine that it ran on
    (r"\w*Error: Class validation error for validator '\w+': (\w+Error: )?", ""),
    (r"<([\w.]*?)(\w+)( object)? at 0x[0-9a-f]+>", r"\2"),
    (r"<(?:class|function|bound method) '?([\w.]*\.)?(\w+)'?[^>]*>", r"\2"),
    (r" ?\(unhinted: [^)]*\)+\.?", ""),
    (r" +\(Size-like symbols: [^)]*\);?", ""),
    (r"\[[^\]]{60,}\]", "[…]"),
    (r"the (gradient|output|buffer) of \S+ differs", r"a \1 differs"),
    (r" \(\d+ of \d+ do\)", ""),
    (r"cannot trace \w+: ", ""),
)


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
        "## torch's own `pipeline()` on the same models",
        _beside(results, rivals),
        *_families(results),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def short(reason: str) -> str:
    """The first sentence of a reason without paths, addresses and Python objects, so that equal causes meet."""
    for pattern, instead in _NOISE:
        reason = re.sub(pattern, instead, reason)
    first = re.split(r"(?<=[^.\d])[.;] (?=[A-Z(\"'`])|; ", " ".join(reason.split()), maxsplit=1)[0].rstrip(" .;:")
    return textwrap.shorten(first, _LONGEST, placeholder=" …").replace("|", "\\|").replace("<", "&lt;")


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
    found = "; ".join(f"{name}: {number}" for name, number in count.most_common())
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
    rows = [(each.name, each.verdict, short(each.reason)) for each in bad]
    return ["## Defects", tabulate(rows, headers=["specimen", "verdict", "what"], tablefmt="github")] if bad else []


def _families(results: Sequence[Result]) -> list[str]:
    by_family: dict[str, list[Result]] = {}
    for each in results:
        by_family.setdefault(each.name.partition(":")[0], []).append(each)
    known = [family for family in _TITLES if family in by_family]
    order = dict.fromkeys([*known, *by_family])
    return [part for family in order for part in _family(family, by_family[family])]


def _family(family: str, results: Sequence[Result]) -> list[str]:
    """What is not split and why, and the names of what is, folded."""
    split = sorted(_kind(each) for each in results if each.verdict == "equal")
    others = [each for each in results if each.verdict not in ("equal", "not built")]
    blank = [each for each in results if each.verdict == "not built"]
    parts = [f"## {_TITLES.get(family, family)}", f"{len(split)} of {len(results) - len(blank)} are split."]
    if others:
        parts.append(_by_reason(others))
    if blank:
        parts += ["Not built by the zoo: no small configuration or no inputs were found, or a package is missing. "
                  "These count nowhere.", _by_reason(blank)]  # fmt: skip
    return [*parts, _folded(f"The {len(split)} that are split", split)] if split else parts


def _folded(title: str, names: Sequence[str]) -> str:
    lines = textwrap.fill(", ".join(names), _WIDTH, break_on_hyphens=False, break_long_words=False)
    return f"<details><summary>{title}</summary>\n\n{lines}\n\n</details>"


def _by_reason(results: Sequence[Result]) -> str:
    """One row for each verdict and short reason, the most frequent first."""
    groups: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for each in results:
        groups[_verdict(each), short(each.reason)].append(_kind(each))
    ranks = {verdict: place for place, verdict in enumerate(ORDER)}
    order = sorted(groups.items(), key=lambda item: (ranks[item[0][0].partition(" (")[0]], -len(item[1]), item[0]))
    rows = [(verdict, reason, str(len(names)), ", ".join(sorted(names))) for (verdict, reason), names in order]
    head = [("verdict", "reason", "number", "models"), ("---", "---", "---:", "---")]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])  # not padded: some cells are long


def _verdict(result: Result) -> str:
    """With the mode, if it is the verdict in one mode only."""
    modes = {check.mode for check in result.checks if check.verdict == result.verdict}
    return f"{result.verdict} ({modes.pop()})" if len(modes) == 1 else result.verdict


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
