"""The links between devices that are here, measured."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import torch

from autopart import cache
from autopart.errors import RunError
from autopart.profiling.devices.pingpong import NUM_REPEATS, SIZES_BYTES, Sample, fit, time_copies
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster, Device, Link

__all__ = ["measure_links"]

TIMEOUT_SECONDS = 120.0

Pair = tuple[Device, Device]
Measure = Callable[[Device, Device, Callable[[], float]], Sequence[Sample]]


def measure_links(
    cluster: Cluster,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = silent,
    refresh: bool = False,
    measure: Measure | None = None,
) -> Cluster:
    """The cluster with measured rules for the devices that are here, behind the given ones and before the assumed.

    Two processes on the processor exchange messages over gloo: one measurement for all of them.  Of CUDA devices
    every pair is measured by copies, and so is the way to the processor.  Results are kept in the cache, by machine
    and torch version.  A link that cannot be measured keeps its assumption, with a warning.

    Args:
        cluster: from ``read_cluster``.
        clock: seconds; of the CUDA copies (the gloo processes have their own).
        progress: told about every pair.
        refresh: measure anew what is in the cache.
        measure: how samples of a pair are taken, instead of really doing so.
    """
    pairs = _pairs(cluster)
    measured = []
    for number, pair in enumerate(pairs):
        progress("measuring links", number, len(pairs))
        link = _measured(pair, clock, refresh, measure or _measure)
        measured += [link] if link else []
    if pairs:
        progress("measuring links", len(pairs), len(pairs))
    given = tuple(link for link in cluster.links if link.origin == "given")
    assumed = tuple(link for link in cluster.links if link.origin == "assumed")
    return dataclasses.replace(cluster, links=(*given, *_rules(cluster, measured), *assumed))


def _pairs(cluster: Cluster) -> list[Pair]:
    """What is worth measuring: one pair of processes, and every pair with a CUDA device."""
    here = [device for device in cluster.devices if device.backend != "absent"]
    processes = [device for device in here if device.backend == "cpu"]
    with_cards = [pair for pair in combinations(here, 2) if any(device.backend == "cuda" for device in pair)]
    return [(processes[0], processes[1]), *with_cards] if len(processes) > 1 else with_cards


def _rules(cluster: Cluster, measured: Sequence[Link]) -> list[Link]:
    """The measured rules; what two processes showed holds for all kinds of processes."""
    cpu_kinds = list(dict.fromkeys(device.kind for device in cluster.devices if device.backend == "cpu"))
    cpu_pairs = [*combinations(cpu_kinds, 2), *((kind, kind) for kind in cpu_kinds)]
    return [
        rule
        for link in measured
        for rule in (
            [dataclasses.replace(link, ends=ends) for ends in cpu_pairs] if link.level == "kind" else [link]
        )
    ]


def _measured(pair: Pair, clock: Callable[[], float], refresh: bool, measure: Measure) -> Link | None:
    one, other = pair
    processes = one.backend == other.backend == "cpu"
    key = ("1", *_machine(), *("" if processes else f"{device.torch_device} {device.kind}" for device in pair))
    content = None if refresh else cache.read("links", key)
    if content is None:
        try:
            line = fit(measure(one, other, clock))
        except (RunError, ValueError) as error:
            warnings.warn(f"the link {one.name}-{other.name} could not be measured ({error}); assumed", stacklevel=3)
            return None
        content = json.dumps(line).encode()
        cache.write("links", key, content)
    latency_seconds, bandwidth_bytes_per_second = json.loads(content)
    how = "gloo between two processes" if processes else "copies"
    return Link(
        level="kind" if processes else "device",
        ends=(one.kind, other.kind) if processes else (one.name, other.name),
        latency_seconds=latency_seconds,
        bandwidth_bytes_per_second=bandwidth_bytes_per_second,
        origin="measured",
        source=f"{how} on this machine, torch {torch.__version__}, {len(SIZES_BYTES)} sizes, median of {NUM_REPEATS}",
    )


def _machine() -> tuple[str, ...]:
    return (platform.node(), platform.machine(), str(os.cpu_count()), torch.__version__)


def _measure(one: Device, other: Device, clock: Callable[[], float]) -> Sequence[Sample]:
    if one.backend == other.backend == "cpu":
        return _measure_processes()
    try:
        return time_copies(torch.device(one.torch_device or ""), torch.device(other.torch_device or ""), clock)
    except RuntimeError as error:
        raise RunError(str(error).partition("\n")[0]) from error


def _measure_processes() -> list[Sample]:
    """Samples of two processes that play ping-pong over the loopback.

    They are started as programs and not by torch.multiprocessing, which would run a user's unguarded script twice.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory(prefix="autopart-") as directory:
        command = [sys.executable, "-m", "autopart.profiling.devices.pingpong"]
        file = str(Path(directory) / "meeting")
        pipes = ((subprocess.PIPE, subprocess.PIPE), (subprocess.DEVNULL, subprocess.DEVNULL))
        with ExitStack() as stack:
            players = [
                stack.enter_context(
                    subprocess.Popen(
                        [*command, str(rank), file], env=environment, text=True, stdout=stdout, stderr=stderr
                    )
                )
                for rank, (stdout, stderr) in enumerate(pipes)
            ]
            return _await(players)


def _await(players: Sequence[subprocess.Popen[str]]) -> list[Sample]:
    """The samples that rank 0 prints; both processes are ended."""
    try:
        output, errors = players[0].communicate(timeout=TIMEOUT_SECONDS)
        if players[0].returncode == 0:
            players[1].wait(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"two processes did not finish within {TIMEOUT_SECONDS:.0f} s") from error
    finally:
        for player in players:
            player.kill()
    if players[0].returncode:
        lines = errors.strip().splitlines()
        raise RunError(f"a process failed: {lines[-1] if lines else 'it said nothing'}", detail=errors)
    return [Sample(num_bytes=num_bytes, seconds=seconds) for num_bytes, seconds in json.loads(output)]
