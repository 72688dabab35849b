from __future__ import annotations

from collections.abc import Callable

from autopart.reporting import profile_text, trace_report, trace_text
from autopart.schema.graph import Graph, Layer, Note, Value, Weight, Work
from autopart.schema.profile import KindProfile, Profile


def a_layer(name: str, *weights: int) -> Layer:
    work = Work(family="gemm", dtype="float32", num_calls=1, flops=2_000_000, traffic_bytes=500_000)
    return Layer(name=name, weights=weights, work=(work,), saved_bytes=1000, peak_bytes=4000, signature=name)


def a_value(producer: int, *consumers: int) -> Value:
    return Value(
        name=f"v{producer}", producer=producer, consumers=consumers, bytes=2048, shape=(4, 128), dtype="float32",
        differentiable=True,
    )


def a_weight(name: str, num_elements: int, *, is_buffer: bool = False) -> Weight:
    return Weight(
        name=name, num_elements=num_elements, bytes=4 * num_elements, dtype="float32", is_buffer=is_buffer,
        trainable=not is_buffer,
    )


def a_graph() -> Graph:
    """Three layers; the last uses the first one's weight, and the middle has a buffer."""
    return Graph(
        model="toy", fingerprint="abc", training=True, batch_size=4,
        layers=(a_layer("embed", 0), a_layer("block", 1, 2), a_layer("head", 0)),
        weights=(
            a_weight("embed.weight", 1000), a_weight("block.weight", 500), a_weight("block.mean", 10, is_buffer=True),
        ),
        values=(a_value(-1, 0), a_value(0, 1, 2), a_value(1, 2), a_value(2, 3)), legal_cuts=(1, 2),
        notes=(Note(code="opaque-module", message="block runs as it is written", suggestion="change that line",
                    where="toy.py:3 (if x.sum() > 0:)"),),
    )


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("trace", trace_text(trace_report(a_graph())))
    row = (0.001, 0.002, 0.003)
    kinds = tuple(
        KindProfile(kind=kind, origin="estimated", basis="roofline, data sheet", forward_seconds=row,
                    backward_seconds=row, optimizer_seconds=row, spread=(0.0,) * 3)
        for kind in ("t4", "l4")
    )
    golden("profile", profile_text(Profile(fingerprint="abc", training=True, batch_size=4, kinds=kinds), a_graph()))


def test_a_tied_weight_is_said_and_counted_once() -> None:
    text = trace_text(trace_report(a_graph()))
    assert "1.50k parameters" in text
    assert "1.00k (tied)" in text


def test_cuts_show_all_bytes_that_cross_them() -> None:
    (line,) = [line for line in trace_text(trace_report(a_graph())).splitlines() if " head " in line]
    assert line.endswith("4.10 kB          2")


def test_the_report_has_the_sums_and_every_cut() -> None:
    report = trace_report(a_graph())
    assert (report.num_parameters, report.flops, report.saved_bytes) == (1500, 6_000_000, 3000)
    assert [(cut.boundary, cut.layer, cut.bytes, cut.gradient_bytes) for cut in report.cuts] == [
        (1, "block", 2048, 2048), (2, "head", 4096, 4096),
    ]
    assert report.cuts[1].tensors == ("v0", "v1")
