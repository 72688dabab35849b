"""The zoo on paper: a table per family, the refusals, and the three figures of the goal."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from tabulate import tabulate

from tests.zoology.result import ORDER, Result

__all__ = ["families", "sentence", "summary", "table"]


def summary(results: Sequence[Result]) -> dict[str, float]:
    """Counts, and the shares that the goal names; what the zoo could not build counts nowhere."""
    built = [each for each in results if each.verdict != "not built"]
    count = collections.Counter(each.verdict for each in built)
    total = max(1, len(built))
    right = count["equal"] + count["refused"] + count["one device"]
    return {
        "examined": len(built),
        "types": len({each.name.partition("/")[0] for each in built}),
        "not built": len(results) - len(built),
        "correct or refused": right / total,
        "split in two or more": count["equal"] / total,
        "silently wrong": count["WRONG"],
    }


def table(results: Sequence[Result]) -> str:
    """Everything that is not equal, one line each; then counts per family and the summary."""
    rows = [(each.name, each.verdict, each.reason[:110]) for each in _sorted(results) if each.verdict != "equal"]
    return "\n\n".join([tabulate(rows), families(results, "simple"), sentence(results)])


def families(results: Sequence[Result], style: str) -> str:
    """How many of each family got which verdict."""
    verdicts = [name for name in ORDER if any(each.verdict == name for each in results)]
    verdicts += sorted({each.verdict for each in results} - set(ORDER))
    rows = []
    for family in dict.fromkeys(each.name.partition(":")[0] for each in results):
        own = [each for each in results if each.name.startswith(family + ":")]
        count = collections.Counter(each.verdict for each in own)
        types = len({each.name.partition("/")[0] for each in own if each.verdict != "not built"})
        rows.append([family, types, len(own), *(count[name] for name in verdicts)])
    return tabulate(rows, headers=["family", "types", "specimens", *verdicts], tablefmt=style)


def sentence(results: Sequence[Result]) -> str:
    """The three figures of the goal."""
    found = summary(results)
    return (
        f"{found['examined']} specimens of {found['types']} types: "
        f"{found['correct or refused']:.1%} end correct or refused with the reason (goal 100 %), "
        f"{found['split in two or more']:.1%} split in at least two stages (goal 97 %), "
        f"{found['silently wrong']} silently wrong (goal 0)."
    )


def _sorted(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda each: (ORDER.index(each.verdict) if each.verdict in ORDER else 0, each.name))
