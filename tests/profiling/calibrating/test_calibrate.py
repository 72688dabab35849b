from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from autopart.errors import FileFormatError
from autopart.profiling.calibrating.calibrate import calibrate, errors_by_subject, left_out
from autopart.profiling.calibrating.calibrationdata import Sample, neusight_operators
from autopart.profiling.calibrating.collectives import fit_line, ring_seconds
from autopart.profiling.calibrating.fits import Fitted, fit_all, lone_seconds
from autopart.profiling.calibrating.leftout import Comparison, group_of, read_data
from autopart.profiling.estimating.laws import LawFile, law_file

KINDS = ("V100-PCIE-32GB", "A100-PCIE-40GB", "T4", "P100-PCIE-16GB")
SHAPES = tuple((64 * 2**i, 96 * 2**j, 128 * 2**k) for i in range(5) for j in range(4) for k in range(4))


def shipped() -> Fitted:
    return Fitted(laws=law_file().laws, events=law_file().events)


def operators(folder: Path, kinds: tuple[str, ...] = KINDS) -> Path:
    """Writes lone operators that take exactly what the shipped constants say."""
    header = ["source", "gpu", "op", "dtype", "b", "m", "n", "k", "shape", "flops", "bytes", "fwd_ms"]
    rows = []
    for gpu in kinds:
        for m, n, k in SHAPES:
            traffic = 4 * (m * k + k * n + m * n)
            rows.append(["", gpu, "linear", "fp32", 1, m, n, k, "", 2 * m * n * k, traffic, 1.0])
            rows.append(["", gpu, "bmm", "fp32", 8, m, n, k, "", 16 * m * n * k, 8 * traffic, 1.0])
            rows.append(["", gpu, "gelu", "fp32", m, "", n * k, "", "", m * n * k, 8 * m * n * k, 1.0])
            rows.append(["", gpu, "softmax", "fp32", m * n, "", k, "", "", m * n * k, 8 * m * n * k, 1.0])
            rows.append(["", gpu, "ln", "fp32", m * n, "", k, "", "", m * n * k, 8 * m * n * k, 1.0])
            text = f"cin={k};cout={n};ks=3;hw={m // 32};stride=1;pad=1"
            size = 4 * (8 * (m // 32) ** 2 * (n + k) + 9 * n * k)
            rows.append(["", gpu, "conv", "fp32", 8, "", "", "", text, 18 * 8 * (m // 32) ** 2 * n * k, size, 1.0])
    path = folder / "ops_neusight_fp32.csv"
    write(path, header, rows)
    for row, seconds in zip(rows, lone_seconds(neusight_operators(folder), shipped()), strict=True):
        row[-1] = 1e3 * float(seconds)
    write(path, header, rows)
    return folder


def write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def half(shape: tuple[int, int, int], seconds: float) -> Sample:
    from tests.profiling.estimating.test_operators import product

    return Sample(
        kind="a100-sxm-40gb", label="linear:one", work=product(1, *shape, dtype="float16"), seconds=seconds
    )


def test_a_fit_finds_what_the_law_gave(tmp_path: Path) -> None:
    lone = neusight_operators(operators(tmp_path))
    halves = [half(shape, 1e-4 + shape[0] * shape[1] * shape[2] / 1e14) for shape in SHAPES]
    fitted = fit_all(lone, (), halves)
    found = lone_seconds(lone, fitted)
    errors = sorted(abs(one / sample.seconds - 1) for one, sample in zip(found, lone, strict=True))
    assert errors[len(errors) // 2] < 0.02
    assert sum(errors) / len(errors) < 0.05
    assert fitted == fit_all(lone, (), halves)  # nothing is random


def test_a_left_out_kind_is_predicted_from_the_others(tmp_path: Path) -> None:
    lone = neusight_operators(operators(tmp_path))
    halves = [half(shape, 1e-4) for shape in SHAPES]
    seen = tuple(sample for sample in lone if group_of(sample.kind) != "t4")
    out = tuple(sample for sample in lone if group_of(sample.kind) == "t4")
    found = lone_seconds(out, fit_all(seen, (), halves))
    errors = [abs(one / sample.seconds - 1) for one, sample in zip(found, out, strict=True)]
    assert len(out) == len(lone) // len(KINDS)
    assert sum(errors) / len(errors) < 0.08


def test_all_forms_of_a_chip_leave_together() -> None:
    assert group_of("a100-sxm-80gb") == group_of("a100-pcie-40gb") != group_of("a10")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"ops_sailor_train\.csv is not in"):
        calibrate(tmp_path)
    operators(tmp_path, KINDS[:1])
    data = read_data(tmp_path, complete=False)
    assert len(data.lone) == 6 * len(SHAPES)
    assert not (data.runs or data.half or data.blocks)


def test_errors() -> None:
    one = Comparison(what="x", kind="t4", predicted=(1.1, 0.8), measured=(1.0, 1.0), roofline=(1.0, 1.0))
    other = Comparison(what="x", kind="l4", predicted=(2.0,), measured=(2.0,), roofline=(1.0,))
    (error,) = errors_by_subject((one, other))
    assert (error.what, error.rows) == ("x", 3)
    assert (error.mean, error.median, error.bias) == pytest.approx((0.1, 0.1, -0.1 / 3))


def test_the_shipped_file_reads_back_and_has_errors_for_every_family() -> None:
    subjects = {error.what: error for error in law_file().errors}
    for what in ("fp32 linear", "fp32 batched", "fp32 convolution", "fp32 softmax", "fp32 layer norm",
                 "fp32 elementwise", "fp16 product, large", "whole model", "speed ratio of two kinds"):  # fmt: skip
        assert 0 < subjects[what].median <= subjects[what].mean < 0.5
        assert subjects[what].rows > 10
    adapter = TypeAdapter(LawFile)
    assert adapter.validate_python(yaml.safe_load(yaml.safe_dump(adapter.dump_python(law_file(), mode="json"))))


def test_a_line_through_collective_times() -> None:
    import numpy as np

    sizes = np.array([2.0**i for i in range(20, 30)])
    line = fit_line(sizes, 30e-6 + sizes / 12e9)
    assert line.latency_seconds == pytest.approx(30e-6, rel=0.02)
    assert line.bytes_per_second == pytest.approx(12e9, rel=0.02)


def test_a_ring() -> None:
    # four devices: six messages of a quarter for the sum, three to gather
    assert ring_seconds("all_reduce", 4e9, 4, latency_seconds=1.0, bytes_per_second=1e9) == pytest.approx(6 + 6)
    assert ring_seconds("all_gather", 4e9, 4, latency_seconds=1.0, bytes_per_second=1e9) == pytest.approx(3 + 3)
    assert ring_seconds("all_reduce", 4e9, 1, latency_seconds=1.0, bytes_per_second=1e9) == 0


def test_left_out_needs_every_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        left_out(read_data(tmp_path))
