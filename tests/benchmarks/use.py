"""What the command line costs: seconds of whole processes, beside ``import torch`` alone in the same run.

    python -m tests.benchmarks.use [--json] [--repeats N] [--devices LIST] [CASE ...]

Cases: help, and for each model plan cold (empty cache) and cached (the cache of the cold run).  Every figure is of
whole processes, their children included; of several runs the median, with the least and the most.  ``beyond`` is what
comes on top of the imports that nobody can avoid: torch, and what the model's own file imports.  Goals: help 0.4 s,
a cached plan of a GPT-2 sized model 2 s beyond importing torch.  CPU seconds grow when others use the machine: the
load average is printed with them.  Python may keep compiled files, as it does of installed packages, in a directory of
the benchmark's own; every command but the cold plan is run once before it is timed, which fills that.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parents[2]
MODELS = {"gpt2": "examples/gpt2.py", "plain": "tests/benchmarks/plaingpt.py"}
PYTHON = (sys.executable,)
AUTOPART = (*PYTHON, "-m", "autopart.cli.main")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of process."""

    case: str
    cpu_seconds: float
    least_cpu_seconds: float
    most_cpu_seconds: float
    wall_seconds: float
    of_torch: float
    """CPU seconds as a multiple of those of ``import torch``"""
    beyond_cpu_seconds: float
    """CPU seconds that the baseline of the case does not take"""
    baseline: str


def seconds(command: Sequence[str], cache: str) -> tuple[float, float]:
    """CPU and wall seconds of a process with its children."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command, cwd=ROOT, env={**kept, "AUTOPART_CACHE": cache, "PYTHONPYCACHEPREFIX": f"{cache}/compiled"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall_seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_seconds


def imports_of(model: str) -> str:
    """A script that imports what a model file imports."""
    return f"import runpy; runpy.run_path({str(ROOT / model)!r})"


def measure(cases: Sequence[str], devices: str, repeats: int) -> list[Row]:
    """The rows, the baselines first."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as cache:

        def add(case: str, command: Sequence[str], baseline: str, times: int) -> None:
            if "cold" not in case:
                seconds(command, cache)
            runs = [seconds(command, cache) for _ in range(times)]
            cpu = [each for each, _ in runs]
            torch_seconds = rows["import torch"].cpu_seconds if rows else statistics.median(cpu)
            rows[case] = Row(
                case=case, cpu_seconds=statistics.median(cpu), least_cpu_seconds=min(cpu), most_cpu_seconds=max(cpu),
                wall_seconds=statistics.median(wall for _, wall in runs), baseline=baseline,
                of_torch=statistics.median(cpu) / torch_seconds,
                beyond_cpu_seconds=statistics.median(cpu) - (rows[baseline].cpu_seconds if baseline in rows else 0.0),
            )  # fmt: skip

        add("import torch", (*PYTHON, "-c", "import torch"), "", repeats)
        if "help" in cases:
            add("help", (*AUTOPART, "--help"), "", repeats)
        for name in (each for each in MODELS if each in cases):
            imports = f"imports of {name}"
            plan = (*AUTOPART, "plan", MODELS[name], "--devices", devices)
            add(imports, (*PYTHON, "-c", imports_of(MODELS[name])), "", repeats)
            add(f"plan {name}, cold", plan, imports, 1)
            add(f"plan {name}, cached", plan, imports, repeats)
    return list(rows.values())


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["help", *MODELS], help=f"help, {', '.join(MODELS)}")
    parser.add_argument("--devices", default="2xt4", help="as for autopart plan")
    parser.add_argument("--repeats", type=int, default=3, help="of everything but cold plans")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    asked = parser.parse_args()
    rows = measure(asked.cases, asked.devices, asked.repeats)
    load = os.getloadavg()[0]
    if asked.json:
        print(json.dumps({"load": load, "devices": asked.devices, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    table = [
        (row.case, row.cpu_seconds, f"{row.least_cpu_seconds:.2f}-{row.most_cpu_seconds:.2f}", row.wall_seconds,
         f"{row.of_torch:.2f}x", f"{row.beyond_cpu_seconds:.2f} over {row.baseline}" if row.baseline else "")
        for row in rows
    ]  # fmt: skip
    print(tabulate(table, ("process", "CPU s", "range", "wall s", "of torch", "beyond"), floatfmt=".2f"))
    print(f"devices {asked.devices}, load average {load:.1f}")


if __name__ == "__main__":
    main()
