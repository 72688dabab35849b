from __future__ import annotations

from pathlib import Path

from autopart.schema.training import StepRecord
from autopart.training.metrics import Tail, append, cut_after, read


def record(step: int, *, seconds: float = 1.0, busy_seconds: tuple[float, ...] = ()) -> StepRecord:
    return StepRecord(
        step=step, loss=None if step == 2 else 0.5, learning_rate=0.1, gradient_norm=1.0, loss_scale=None,
        skipped=False, samples=8 * step, seconds=seconds, busy_seconds=busy_seconds,
    )


def test_what_is_written_is_read_and_what_will_be_done_again_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read(path) == () and Tail(path).new() == ()
    cut_after(path, 3)
    tail = Tail(path)
    for step in range(1, 6):
        append(path, record(step))
    assert read(path) == tuple(map(record, range(1, 6)))
    assert tail.new() == read(path) and tail.new() == ()
    with path.open("a") as file:
        file.write('{"step": 6, "loss"')  # the process was killed
    assert len(read(path)) == 5 and tail.new() == ()
    cut_after(path, 3)
    assert read(path) == tuple(map(record, range(1, 4)))
    append(path, record(4))
    assert [each.step for each in read(path)] == [1, 2, 3, 4]


def test_a_line_that_is_being_written_comes_with_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, record(1))
    tail = Tail(path)
    whole = path.read_text()
    with path.open("a") as file:
        file.write(whole[:20])
        file.flush()
        assert tail.new() == ()
        file.write(whole[20:])
        file.flush()
    assert tail.new() == (record(1),)
