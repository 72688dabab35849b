"""Split every architecture of the zoo in 2 and 4, and compare with the unsplit model, bit by bit.

    python -m tests.benchmarks.zoo [--family hf|timm|torchvision|unet|hazard] [--only PATTERN] [--jobs N]
                                   [--results FILE] [--sample N] [--rival] [--json | --markdown]

Results are appended to a file of JSON lines; specimens that it has for these versions and this code are not examined
again.  ``--rival`` examines torch's own pipeline() instead.  Goal: all equal or refused with the reason, 97 % split in
at least two stages, none silently wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.zoology.catalogue import FAMILIES, specimens
from tests.zoology.coverage import markdown
from tests.zoology.fingerprint import key_of_code
from tests.zoology.processes import Limits, Task, examine_all
from tests.zoology.records import latest, read, write
from tests.zoology.result import Result
from tests.zoology.tables import summary, table


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    key = key_of_code()
    names = _chosen(options)
    path = Path(options.results)
    before = read(path)
    current = {result.name: result for result in before if options.any_code or result.key == key}
    todo = [name for name in names if name not in current or (options.again and _matches(options.again, current[name]))]
    if options.show:
        todo = []
    _examine(todo, key, options, path)
    results = [each for each in latest(read(path), names) if options.any_code or options.show or each.key == key]
    _print(results, options, num_open=len(names) - len(results))
    return 0 if all(result.verdict not in ("WRONG", "crash", "killed") for result in results) else 1


def _examine(names: Sequence[str], key: str, options: argparse.Namespace, path: Path) -> None:
    limits = Limits(cpu_seconds=options.cpu_seconds, wall_seconds=options.cpu_seconds * 6)
    task = Task(
        key=key, modes=tuple(options.modes.split(",")), rival=options.rival, cache=not options.no_cache
    )
    found = examine_all(names, task, jobs=options.jobs, limits=limits)
    for done, result in enumerate(found, start=1):
        write(path, result)
        print(f"{done}/{len(names)} {result.name}: {result.verdict} {result.reason[:150]}", file=sys.stderr, flush=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES))
    parser.add_argument("--only", default="", help="a regular expression for names")
    parser.add_argument("--first", action="store_true", help="one specimen of each type")
    parser.add_argument("--sample", type=int, help="so many at random, the same each time")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cpu-seconds", type=int, default=120, help="limit of one specimen")
    parser.add_argument("--modes", default="train,eval")
    parser.add_argument("--no-cache", action="store_true", help="language models return no key-value cache")
    parser.add_argument("--results", default="zoo.jsonl")
    parser.add_argument("--again", default="", help="examine those again whose verdict and reason match")
    parser.add_argument("--any-code", action="store_true", help="take results of other versions and code too")
    parser.add_argument("--show", action="store_true", help="examine nothing")
    parser.add_argument("--rival", action="store_true", help="torch's pipeline() instead")
    parser.add_argument("--rival-results", default="zoo-rival.jsonl", help="for --markdown: what --rival wrote")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args(argv)


def _chosen(options: argparse.Namespace) -> list[str]:
    names, kinds = [], set()
    for each in specimens(options.family):
        if not re.search(options.only, each.name) or (options.first and (each.family, each.kind) in kinds):
            continue
        kinds.add((each.family, each.kind))
        names.append(each.name)
    random.Random(0).shuffle(names)
    return names[: options.sample]


def _matches(pattern: str, result: Result) -> bool:
    return bool(re.search(pattern, f"{result.verdict}: {result.reason}"))


def _print(results: Sequence[Result], options: argparse.Namespace, *, num_open: int) -> None:
    if options.json:
        print(json.dumps({"results": [asdict(each) for each in results], "summary": summary(results)}))
    elif options.markdown:
        print(markdown(results, read(Path(options.rival_results)), num_open=num_open), end="")
    else:
        print(table(results))


if __name__ == "__main__":
    sys.exit(main())
