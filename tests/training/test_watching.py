from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autopart.errors import RankError
from autopart.schema.training import Recipe, StepRecord
from autopart.training.metrics import append
from autopart.training.records import TrainSpec, phase_path, pid_path
from autopart.training.stacks import Standing, ask, blamed, read_stack
from autopart.training.watching import START_SECONDS, Watch
from tests.training.test_metrics import record

DUMP = """Thread 0x00007f2b (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f11 (most recent call first):
  File "{file}", line 33 in {function}
  File "/home/me/model.py", line 12 in loss_fn
  File "/site-packages/autopart/training/rank.py", line 55 in main
  File "<frozen runpy>", line 88 in _run_code
"""
WAITING = DUMP.format(file="/x/site-packages/torch/distributed/distributed_c10d.py", function="all_reduce")
COMPUTING = DUMP.format(file="/x/site-packages/torch/nn/functional.py", function="linear")


def test_a_stack_says_who_waits_and_where_the_users_code_is() -> None:
    waiting, computing, silent = read_stack(0, WAITING), read_stack(1, COMPUTING), read_stack(2, "")
    assert (waiting.answers, waiting.waits) == (True, True)
    assert (computing.answers, computing.waits, computing.where) == (True, False, "/home/me/model.py:12")
    assert not silent.answers
    assert blamed([waiting, computing, silent]) == silent
    assert blamed([waiting, computing]) == computing
    assert blamed([waiting, waiting]) is None


def test_a_process_is_asked(tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(
        "import faulthandler, signal, sys, time\n"
        "faulthandler.register(signal.SIGUSR1, open(sys.argv[1], 'w'), all_threads=True)\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, program, tmp_path / "rank0.stack"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        pid_path(tmp_path, 0).write_text(str(process.pid))
        for _ in range(100):
            found = ask(tmp_path, 2, patience_seconds=0.05)
            if found[0].where == f"{program}:4":  # it may still be at its print
                break
        process.kill()
    assert found[0].where == f"{program}:4" and not found[0].waits
    assert not found[1].answers, "there is no such rank"


class World:
    """A run whose clock and ranks are the test's."""

    def __init__(self, directory: Path, standings: tuple[Standing, ...] = ()) -> None:
        self.now_seconds = 0.0
        self.steps: list[int] = []
        self.spec = TrainSpec(
            plan_path="", source="", source_directory="", directory=str(directory), devices=("cpu:0", "cpu:1"),
            recipe=Recipe(steps=9, optimizer="sgd"), data="", checkpoints=None, resume=False,
            metrics=str(directory / "metrics.jsonl"), group_timeout_seconds=1.0,
        )
        self.watch = Watch(
            self.spec, hang_seconds=10.0, progress=lambda what, done, total: self.steps.append(done),
            noted=self.noted, clock=lambda: self.now_seconds, ask_ranks=lambda *_: standings,
        )
        self.seen: list[StepRecord] = []

    def noted(self, each: StepRecord) -> None:
        self.seen.append(each)

    def wait(self, seconds: float) -> None:
        self.now_seconds += seconds
        self.watch()

    def phase(self, text: str) -> None:
        phase_path(self.spec.directory).write_text(text)

    def step(self, number: int, seconds: float) -> None:
        append(Path(self.spec.metrics), record(number, seconds=seconds))
        self.phase(f"step {number}")


def test_what_moves_is_left_alone_and_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wait(START_SECONDS - 1)
    world.phase("step 0")
    world.wait(5)
    world.wait(39)  # the first step may take four times as long
    world.step(1, 20.0)
    world.wait(1)
    world.wait(199)  # ten times the longest
    world.phase("checkpoint 1")
    world.wait(200)
    world.step(2, 1.0)
    world.wait(1)
    assert world.steps == [1, 2] and [each.step for each in world.seen] == [1, 2]


@pytest.mark.parametrize(
    ("standings", "fate", "device", "message"),
    [
        ((read_stack(0, WAITING), read_stack(1, COMPUTING)), "hung", "cpu:1", "rank 1 (cpu:1) hangs: nothing has moved "
         "for 11 s and it is at /home/me/model.py:12"),
        ((read_stack(0, ""), read_stack(1, WAITING)), "hung", "cpu:0", "does not answer"),
        ((read_stack(0, WAITING), read_stack(1, WAITING)), "link", "", "a link between them is lost"),
    ],
)  # fmt: skip
def test_what_stands_still_is_blamed(
    standings: tuple[Standing, ...], fate: str, device: str, message: str, tmp_path: Path
) -> None:
    world = World(tmp_path, standings)
    world.step(1, 0.1)
    world.wait(1)
    world.wait(10)
    with pytest.raises(RankError) as caught:
        world.wait(1)
    assert (caught.value.fate, caught.value.device) == (fate, device)
    assert message in str(caught.value)
