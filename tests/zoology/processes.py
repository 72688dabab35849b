"""Each examination in a process of its own, with limits of time and memory; several at once."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tests.zoology.result import Result

__all__ = ["Limits", "Task", "examine_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    cpu_seconds: int = 120
    wall_seconds: int = 600
    memory_bytes: int = 8 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is done with each specimen."""

    key: str
    modes: tuple[str, ...] = ("train", "eval")
    rival: bool = False
    cache: bool = True
    """False: models return no key-value caches"""


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    process: BaseProcess
    deadline: float


def examine_all(
    names: Sequence[str], task: Task, *, jobs: int, limits: Limits
) -> Iterator[Result]:
    """Results as they come.  Processes are forked from a server that has imported everything.

    Raises:
        ImportError: the code to examine cannot be imported; without this look every examination would end with it.
    """
    importlib.import_module("tests.zoology.examine")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.zoology.warm"])
    open_names, running = list(names), dict[Any, _Job]()
    while open_names or running:
        while open_names and len(running) < jobs:
            near, far = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(open_names[0], far, task, limits))
            process.start()
            far.close()
            running[near] = _Job(open_names.pop(0), process, time.monotonic() + limits.wall_seconds)
        wait(list(running), timeout=1.0)
        for connection, job in list(running.items()):
            late = time.monotonic() > job.deadline
            if connection.poll() or late:
                del running[connection]
                yield _received(connection, job, task.key, late=late)


def _received(connection: Connection, job: _Job, key: str, *, late: bool) -> Result:
    try:
        if connection.poll():
            result: Result = connection.recv()
            return result
        reason = "over the limit of wall time"
    except EOFError:
        job.process.join(5)
        reason = f"the process ended with code {job.process.exitcode} (a limit of memory or time, or an abort)"
    finally:
        job.process.kill()
        job.process.join()
        connection.close()
    return Result(name=job.name, key=key, verdict="killed", reason=reason)


def _child(name: str, connection: Connection, task: Task, limits: Limits) -> None:
    from tests.zoology.catalogue import find
    from tests.zoology.examine import examine, examine_rival

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch prints whole graphs when it cannot trace
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 5))
    specimen = find(name)
    if task.rival:
        connection.send(examine_rival(specimen, task.key))
    else:
        connection.send(examine(specimen, task.key, modes=task.modes, cache=task.cache))
