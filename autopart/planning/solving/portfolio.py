"""CBC and HiGHS in processes of their own: CBC at once, HiGHS beside it where CBC takes long.

CBC is the quicker on path programs by far, so programs that it settles within ``PATIENCE_SECONDS`` are always its own
and the same input gives the same answer.  Only a believed answer ends the race; the other process is killed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pulp

from autopart.schema.job import SolverName

__all__ = ["Answer", "race"]

PATIENCE_SECONDS = 5.0
LATE = 0.8
"""CBC has called feasible programs infeasible as its time ran out: past this share of it that is not believed"""
POLL_SECONDS = 0.005

Word = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a solver says of a program."""

    word: Word
    values: tuple[str, ...]
    """names of the binary variables that are 1"""
    bound: float
    """no solution has a smaller objective, by the solver's word; -inf if it gave none"""
    solver: str


HIGHS_CODE = """
import sys, highspy
h = highspy.Highs()
h.setOptionValue("output_flag", False)
h.readModel(sys.argv[1])
for name, value in (("threads", 1), ("random_seed", 1), ("time_limit", float(sys.argv[2])),
                    ("mip_rel_gap", float(sys.argv[3])), ("mip_feasibility_tolerance", 1e-7)):
    h.setOptionValue(name, value)
h.run()
status, info = h.modelStatusToString(h.getModelStatus()), h.getInfo()
with open(sys.argv[4], "w") as out:
    print(status, file=out)
    print(info.mip_dual_bound, info.primal_solution_status, file=out)
    if info.primal_solution_status == 2:
        names, values = h.getLp().col_names_, h.getSolution().col_value
        print("\\n".join(n for n, v in zip(names, values) if v > 0.5), file=out)
"""


def _start(solver: str, folder: Path, limit: float, gap: float) -> subprocess.Popen[str]:
    model, out = str(folder / "model.mps"), str(folder / f"{solver}.sol")
    if solver == "highs":
        command = [sys.executable, "-c", HIGHS_CODE, model, str(limit), str(gap), out]
    else:
        command = [
            pulp.PULP_CBC_CMD().path, model, "-sec", str(limit), "-ratio", str(gap), "-randomSeed", "1",
            "-threads", "1", "-timeMode", "elapsed", "-printingOptions", "all", "-solve", "-solution", out, "-quit",
        ]
    log = (folder / f"{solver}.log").open("w")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)


def _read(solver: str, folder: Path, *, late: bool) -> Answer:
    """The answer of a solver that has ended."""
    out = folder / f"{solver}.sol"
    lines = out.read_text().splitlines() if out.exists() else []
    if not lines:
        return Answer(word="unknown", values=(), bound=float("-inf"), solver=solver)
    return (_read_highs if solver == "highs" else _read_cbc)(lines, folder, late)


def _read_highs(lines: list[str], folder: Path, late: bool) -> Answer:
    words: dict[str, Word] = {"Optimal": "optimal", "Infeasible": "infeasible"}
    bound, primal = lines[1].split()
    word = words.get(lines[0], "feasible" if primal == "2" else "unknown")
    return Answer(word=word, values=tuple(lines[2:]), bound=float(bound), solver="highs")


def _read_cbc(lines: list[str], folder: Path, late: bool) -> Answer:
    status = lines[0]
    chosen = [line.lstrip("* ").split() for line in lines[1:]]
    values = tuple(row[1] for row in chosen if float(row[2]) > 0.5)
    log = (folder / "cbc.log").read_text().splitlines()
    bounds = [line.split(":")[1] for line in log if line.startswith("Lower bound:")]
    bound = float(bounds[-1]) if bounds else float("-inf")
    if status.startswith("Optimal"):
        objective = float(status.split("value")[1])
        return Answer(word="optimal", values=values, bound=min(bound, objective) if bounds else objective, solver="cbc")
    if status.startswith(("Infeasible", "Integer infeasible")) and not late:
        return Answer(word="infeasible", values=(), bound=float("inf"), solver="cbc")
    found = status.startswith("Stopped") and "no integer solution" not in status and bool(values)
    return Answer(word="feasible" if found else "unknown", values=values if found else (), bound=bound, solver="cbc")


def race(
    problem: Any, solver: SolverName, *, time_limit_seconds: float, gap: float,
    accept: Callable[[Answer], bool], sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Answer | None, tuple[Answer, ...]]:
    """The first accepted answer (None: there was none) and all answers given; ``problem`` is a pulp.LpProblem.

    Args:
        problem: what to minimise.
        solver: which solvers may run; auto: both.
        time_limit_seconds: for each of them.
        gap: relative, at which a solver may stop.
        accept: whether an answer is believed.
        sleep: waits for so many seconds.
        clock: seconds, by which HiGHS is started.
    """
    with tempfile.TemporaryDirectory(prefix="autopart-") as name:
        folder = Path(name)
        problem.writeMPS(str(folder / "model.mps"))
        waiting = ["cbc", "highs"] if solver == "auto" else [str(solver)]
        running: dict[str, tuple[subprocess.Popen[str], float]] = {}
        given: list[Answer] = []
        began = clock()
        try:
            while waiting or running:
                if waiting and (not running or clock() - began > PATIENCE_SECONDS):
                    next_up = waiting.pop(0)
                    left = max(time_limit_seconds - (clock() - began), 1.0)
                    running[next_up] = (_start(next_up, folder, left, gap), clock())
                for each, (process, since) in list(running.items()):
                    if process.poll() is not None:
                        del running[each]
                        late = clock() - since >= LATE * time_limit_seconds
                        given.append(_read(each, folder, late=late))
                        if accept(given[-1]):
                            return given[-1], tuple(given)
                sleep(POLL_SECONDS)
        finally:
            for process, _ in running.values():
                process.kill()
                process.wait()
        return None, tuple(given)
