from __future__ import annotations

from pathlib import Path

import pytest

from autopart.errors import DeviceError, FileFormatError
from autopart.profiling import read_cluster
from autopart.profiling.devices.catalogue import kind
from autopart.profiling.devices.ownkinds import BESIDE_MODEL, own_kinds

CARD = "{name: my-card, memory: 24GB, bandwidth: 900GB/s, peaks: {fp32: 30TFLOPS}, tdp_watts: 300}"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's config file, not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "autopart").mkdir(parents=True)
    return tmp_path / "config" / "autopart" / "devices.yaml"


def beside(folder: Path, content: str) -> Path:
    (folder / BESIDE_MODEL).write_text(content)
    return folder


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert own_kinds(tmp_path) == own_kinds() == ()


def test_every_figure_says_that_it_is_the_users(tmp_path: Path) -> None:
    (own,) = own_kinds(beside(tmp_path, f"kinds: [{CARD}]"))
    assert own.tdp_watts is not None
    figures = (own.memory_bytes, own.bandwidth_bytes_per_second, own.peaks[0].flops_per_second, own.tdp_watts)
    assert [figure.value for figure in figures] == [24e9, 900e9, 30e12, 300]
    assert own.peaks[0].dtype == "float32"
    assert all(figure.source.startswith("user, ") for figure in figures)


def test_a_figure_may_have_a_source_of_the_files_table(tmp_path: Path) -> None:
    text = CARD.replace("24GB", "{value: 24GB, source: shop, confidence: low}")
    (own,) = own_kinds(beside(tmp_path, f"sources: {{shop: the shop's page}}\nkinds: [{text}]"))
    assert own.memory_bytes.source == f"user, {BESIDE_MODEL}: the shop's page"
    assert own.memory_bytes.confidence == "low"


def test_beside_the_model_outdoes_the_config_directory(tmp_path: Path, config: Path) -> None:
    config.write_text(f"kinds: [{CARD}, {CARD.replace('my-card', 'other')}]")
    found = own_kinds(beside(tmp_path, f"kinds: [{CARD.replace('24GB', '12GB')}]"))
    assert [(own.name, own.memory_bytes.value) for own in found] == [("my-card", 12e9), ("other", 24e9)]


def test_json_is_read_too(config: Path) -> None:
    config.write_text('{"kinds": [{"name": "my-card", "memory": 24e9, "bandwidth": 9e11, "peaks": {"fp32": 3e13}}]}')
    assert own_kinds()[0].memory_bytes.value == 24e9


def test_a_cluster_knows_the_own_kinds_that_it_uses(tmp_path: Path) -> None:
    beside(tmp_path, f"kinds: [{CARD}, {CARD.replace('my-card', 'unused')}]")
    cluster = read_cluster("2xmy-card,t4", folder=tmp_path, max_memory="mycard=20GB")
    assert [device.memory_bytes for device in cluster.devices] == [20e9, 20e9, 15.4e9]
    assert [own.name for own in cluster.kinds] == ["my-card"]


def test_a_cluster_file_may_use_own_kinds(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("devices: [{name: desk, kind: my-card, count: 2}]")
    cluster = read_cluster(cluster_file=file, folder=beside(tmp_path, f"kinds: [{CARD}]"))
    assert [device.kind for device in cluster.devices] == ["my-card", "my-card"]
    assert [own.name for own in cluster.kinds] == ["my-card"]


def test_an_own_kind_stands_in_place_of_the_catalogues(tmp_path: Path) -> None:
    own = own_kinds(beside(tmp_path, f"kinds: [{CARD.replace('my-card', 't4')}]"))
    assert kind("t4", own).memory_bytes.value == 24e9 and kind("t4").memory_bytes.value == 16e9


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("kinds: [{name: x}]", "kinds.0.memory: Field required"),
        (f"kinds: [{CARD}, {CARD}]", "there 2 times"),
        (f"kinds: [{CARD.replace('24GB', '24 apples')}]", "24 apples"),
        (f"kinds: [{CARD.replace('24GB', '.nan')}]", "kinds.0 (my-card)"),
        (f"kinds: [{CARD.replace('fp32', 'fp3')}]", "unknown data type 'fp3'"),
        (f"kinds: [{CARD.replace('300', '-1')}]", "not a number above 0"),
        (f"kinds: [{CARD.replace('tdp_watts', 'tpd')}]", "kinds.0.tpd: unknown field"),
        (f"kinds: [{CARD.replace('tdp_watts: 300', 'link: rope')}]", "no link kind is called 'rope'"),
        (f"kinds: [{CARD.replace('my-card', 'a b')}]", "kinds.0.name"),
        ("[]", "the file"),
        ("", "the file"),
    ],
)
def test_bad_fields_are_refused_in_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(DeviceError) as caught:
        own_kinds(beside(tmp_path, content))
    message = str(caught.value)
    assert complaint in message and BESIDE_MODEL in message and "\n" not in message


@pytest.mark.parametrize("content", ["kinds: [", "!!python/object/apply:os.system [true]", "[" * 100_000])
def test_what_is_no_plain_yaml_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(FileFormatError, match=BESIDE_MODEL):
        own_kinds(beside(tmp_path, content))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / BESIDE_MODEL).mkdir()
    with pytest.raises(FileFormatError, match="give the path"):
        own_kinds(tmp_path)


def test_a_kind_with_less_memory_than_the_driver_takes_is_refused(tmp_path: Path) -> None:
    beside(tmp_path, f"kinds: [{CARD.replace('24GB', '0.5GB')}]")
    with pytest.raises(DeviceError, match="no more than the driver's context takes"):
        read_cluster("my-card", folder=tmp_path)
