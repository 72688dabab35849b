"""Pictures: what is in them is where the figures say, in both formats."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autopart import planning
from autopart.cli.main import main
from autopart.reporting.canvas import SCALE, Box, Letters, Picture, png, svg
from autopart.reporting.pictures import comparison_picture, plan_picture
from autopart.schema.comparison import Comparison, DeviceSet
from autopart.schema.store import save
from tests.paper import a_plan

EVIL = "</text><script>alert(1)</script>&\x00"


def pixels(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Of a PNG, red, green and blue."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def test_a_box_is_where_it_is_said_to_be() -> None:
    drawn = pixels(png(Picture(width=20, height=10, letters=(), boxes=(
        Box(left=5, top=2, width=3, height=4, colour="#ff0000"),
    ))))
    red = np.argwhere((drawn == (255, 0, 0)).all(axis=2))
    assert red.min(axis=0).tolist() == [2 * SCALE, 5 * SCALE]
    assert red.max(axis=0).tolist() == [6 * SCALE - 1, 8 * SCALE - 1]


def test_letters_are_drawn_where_they_are_said_to_be() -> None:
    blank = Picture(width=80, height=20, boxes=(), letters=())
    for anchor, where in (("start", slice(20, None)), ("end", slice(None, 20))):
        letters = Letters(left=10, top=2, text="I", anchor=anchor)  # type: ignore[arg-type]
        drawn = pixels(png(replace(blank, letters=(letters,))))
        assert (drawn[:, where] != 255).any() and (drawn[:, 40:] == 255).all()


@pytest.mark.parametrize("training", [False, True])
def test_the_bars_of_a_stage_add_up_to_its_time(training: bool) -> None:
    plan = a_plan(training=training)
    timeline = planning.simulate(plan)
    picture = plan_picture(plan, timeline)
    room = max(box.width for box in picture.boxes)  # the track of a stage's memory
    for kind in ("forward", *(["backward"] if training else [])):
        drawn = sum(box.width + 0.5 for box in picture.boxes if box.title.startswith(kind))
        seconds = sum(each.end_seconds - each.start_seconds for each in timeline.events if each.kind == kind)
        assert drawn / room == pytest.approx(seconds / timeline.step_seconds, rel=0.01)


def test_what_a_stranger_writes_stays_text() -> None:
    plan = replace(a_plan(), model=replace(a_plan().model, name=EVIL))
    root = ElementTree.fromstring(svg(plan_picture(plan, planning.simulate(plan))))
    assert not [each for each in root.iter() if each.tag.endswith("script")]
    assert any("alert(1)" in (each.text or "") for each in root.iter())


def test_bars_of_a_comparison_are_its_rates() -> None:
    sets = tuple(
        DeviceSet(name=name, num_devices=1, throughput_per_second=rate, latency_seconds=1.0, pareto=rate > 50)
        for name, rate in (("fast", 100.0), ("slow", 25.0))
    )
    none = DeviceSet(name="small", num_devices=1, reason="too small")
    comparison = Comparison(model="m", job=a_plan().job, criteria=("throughput", "devices"), sets=(*sets, none))
    fast, slow = comparison_picture(comparison).boxes[2:]
    assert fast.width == pytest.approx(4 * slow.width) and fast.colour != slow.colour
    assert "on 1 more sets nothing fits" in svg(comparison_picture(comparison))


def test_the_command_refuses_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(a_plan(), tmp_path / "plan.json")
    assert main(["plan", "nowhere.py", "--plot", "plan.jpg"]) == 2
    assert "neither .svg nor .png" in capsys.readouterr().err
