from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import FileFormatError, UsageError
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan
from autopart.schema.profile import KindProfile, Profile
from autopart.schema.store import (
    MAX_FILE_BYTES,
    dump,
    load,
    load_measurement,
    load_plan,
    load_profile,
    parse,
    save,
    save_plan,
    write_text,
)
from tests.paper import a_measurement, a_plan


def a_profile(seconds: tuple[float, ...] = (0.1, 0.25)) -> Profile:
    zeros = (0.0,) * len(seconds)
    kind = KindProfile(
        kind="t4", origin="estimated", basis="roofline", forward_seconds=seconds, backward_seconds=zeros,
        optimizer_seconds=zeros, spread=zeros,
    )
    return Profile(fingerprint="abc", training=False, batch_size=4, kinds=(kind,))


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(dump(a_plan())) | changes)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    save_plan(a_plan(training=True), tmp_path / "plan.json")
    save(a_measurement(), tmp_path / "run.json")
    save(a_profile(), tmp_path / "profile.json")
    assert load_plan(tmp_path / "plan.json") == a_plan(training=True)
    assert load_measurement(tmp_path / "run.json") == a_measurement()
    assert load_profile(tmp_path / "profile.json") == a_profile()


@given(st.lists(st.floats(min_value=0, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_floats_keep_every_bit(seconds: list[float]) -> None:
    profile = a_profile(tuple(seconds))
    assert parse(Profile, dump(profile)) == profile


def test_the_text_is_the_same_every_time_and_ends_in_a_newline() -> None:
    assert dump(a_plan()) == dump(a_plan())
    assert dump(a_plan()).endswith("}\n")
    assert list(json.loads(dump(a_plan())))[:3] == ["format_version", "verdict", "model"]


def test_a_number_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump(replace(a_measurement(), gain=float("nan")))


@pytest.mark.parametrize(("text", "message"), [
    (edited(colour="red"), "colour: unknown field"),
    (edited(format_version=7), "is of format version 7, this autopart reads version 1"),
    (edited(format_version=True), "is of format version True"),
    (edited(verdict=3), "verdict: Input should be a valid string (here 3)"),
    (edited(stages=[]), "stages must be numbered from 0"),
    ("[1, 2]", "holds a JSON array, not an object"),
    ("3", "holds a JSON number"),
    ("", "ends too early"),
    (dump(a_plan())[:-40], "ends too early (truncated?)"),
    ("{'a': 1}", "is not JSON"),
    ('{"format_version": 1, "verdict": NaN}', "holds the number NaN"),
    ('{"format_version": 1, "verdict": -Infinity}', "holds the number -Infinity"),
    ("[" * 100_000, "nested too deeply"),
    ('{"a": ' + "9" * 5000 + "}", "holds a number that cannot be read"),
    (dump(a_measurement()), "is a measurement, not a plan"),
    (dump(a_profile()), "is a profile, not a plan"),
])
def test_what_is_no_plan_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        parse(Plan, text, where="plan.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("plan.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("path", "value", "message"), [
    (("stages", 1, "colour"), "red", "stages.1.colour: unknown field"),
    (("stages", 0, "peak_bytes"), "many", "stages.0.peak_bytes: Input should be a valid integer (here 'many')"),
    (("stages", 0, "memory", "gradients"), 1.5, "stages.0.memory.gradients"),
    (("prediction", "step_seconds"), 1e999, "Infinity"),
    (("job", "gap"), 2.0, "job: time limit must be positive and gap in [0, 1)"),
])
def test_the_wrong_field_is_named(path: tuple[str | int, ...], value: object, message: str) -> None:
    document = json.loads(dump(a_plan()))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(FileFormatError) as caught:
        parse(Plan, json.dumps(document))
    assert message in str(caught.value)


def test_a_missing_field_is_named_and_further_faults_are_in_the_detail() -> None:
    document = json.loads(dump(a_plan()))
    del document["stages"][0]["layers"], document["proof"]["gap"]
    with pytest.raises(FileFormatError, match=r"stages\.0\.layers: missing field \(1 more\)") as caught:
        parse(Plan, json.dumps(document))
    assert caught.value.detail == "proof.gap: missing field"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        load_plan(tmp_path / "nothing.json")
    with pytest.raises(FileFormatError, match="cannot be read: Is a directory"):
        load_plan(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FileFormatError, match="no UTF-8"):
        load_plan(tmp_path / "binary.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(FileFormatError, match=f"has {MAX_FILE_BYTES + 1} bytes"):
        load(Measurement, tmp_path / "huge.json")


def test_a_file_is_replaced_whole_and_nothing_is_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    save_plan(a_plan(), path)
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot be written: No space left on device"):
        save_plan(replace(a_plan(), verdict="another"), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_no_file_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        write_text("text", tmp_path / "no folder" / "plan.json")
    with pytest.raises(UsageError, match="cannot be written"):
        write_text("text", tmp_path)


def test_a_device_is_written_in_place_and_a_link_is_followed(tmp_path: Path) -> None:
    write_text("text", os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text("text", tmp_path / "link")
    assert (tmp_path / "real").read_text() == "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    numbers: tuple[int, ...]


def test_any_dataclass_is_dumped_and_parsed() -> None:
    assert parse(Other, dump(Other(numbers=(1, 2)))) == Other(numbers=(1, 2))
