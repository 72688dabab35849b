from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.profiling.devices.catalogue import kind
from autopart.profiling.estimating.estimate import OPTIMIZER_PASSES, corrected, estimate
from autopart.profiling.estimating.laws import law_file, shipped_laws
from autopart.schema.device import Figure, Kind, Peak
from autopart.schema.graph import Graph, Layer, Value, Weight, Work

FAMILIES = ("gemm", "attention", "convolution", "normalization", "softmax", "elementwise", "reduction", "embedding",
            "copy", "other")  # fmt: skip


def work(family: str = "gemm", dtype: str = "float32", calls: int = 1, flops: int = 0, traffic: int = 0) -> Work:
    return Work(family=family, dtype=dtype, num_calls=calls, flops=flops, traffic_bytes=traffic)


def graph(
    *layers: tuple[Work, ...],
    weight_bytes: int = 4_000_000,
    trainable: tuple[bool, ...] = (),
    tied: bool = False,
    input_wants_gradient: bool = False,
) -> Graph:
    """A chain; every layer has a weight (or all share one), its input comes from the layer before."""
    trains = trainable or (True,) * len(layers)
    gradient = [input_wants_gradient]
    for one in trains:
        gradient.append(gradient[-1] or one)
    return Graph(
        model="chain",
        fingerprint="",
        training=True,
        batch_size=1,
        layers=tuple(
            Layer(name=f"l{i}", weights=(0 if tied else i,), work=some, saved_bytes=0, peak_bytes=0, signature="")
            for i, some in enumerate(layers)
        ),
        weights=tuple(
            Weight(
                name=f"w{i}",
                num_elements=weight_bytes // 4,
                bytes=weight_bytes,
                dtype="float32",
                is_buffer=False,
                trainable=one,
            )
            for i, one in enumerate(trains)
        ),
        values=tuple(
            Value(
                name=f"v{i}",
                producer=i - 1,
                consumers=(i,),
                bytes=4,
                shape=(1,),
                dtype="float32",
                differentiable=gradient[i],
            )
            for i in range(len(layers) + 1)
        ),
        legal_cuts=(),
    )


def forward(one: Work, name: str = "a100-sxm-80gb") -> float:
    return estimate(graph((one,)), kind(name), training=False, optimizer="none").forward_seconds[0]


@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(["float32", "float16", "bfloat16", "float64", "int64"]),
    st.integers(1, 100),
    st.integers(10**6, 10**13),  # below, a convolution of no work is given 1.5 % more than one of little
    st.integers(0, 10**10),
)
def test_more_work_never_takes_less(family: str, dtype: str, calls: int, flops: int, traffic: int) -> None:
    base = work(family, dtype, calls, flops, traffic)
    seconds = forward(base)
    assert seconds > 0
    for more in (
        dataclasses.replace(base, num_calls=2 * calls, flops=2 * flops, traffic_bytes=2 * traffic),
        dataclasses.replace(base, flops=2 * flops + 10**9),
        dataclasses.replace(base, traffic_bytes=2 * traffic + 10**6),
    ):
        assert seconds <= forward(more) * (1 + 1e-9)


def test_a_large_copy_reaches_its_share_of_the_bandwidth() -> None:
    reached = shipped_laws().vector.efficiency * 2039e9
    assert forward(work("elementwise", traffic=10**10)) == pytest.approx(10**10 / reached, rel=1e-2)


def test_a_small_operator_costs_its_launch() -> None:
    assert forward(work("elementwise", calls=10, traffic=1000)) == pytest.approx(10 * 6e-6, rel=0.05)


def test_layers_sum_their_work_and_are_on_their_own() -> None:
    one, other = work(flops=10**10, traffic=10**7), work("softmax", traffic=10**8)
    both = estimate(graph((one, other), (one,), (other,)), kind("l4"), training=False, optimizer="none")
    assert both.forward_seconds[0] == pytest.approx(both.forward_seconds[1] + both.forward_seconds[2])
    assert both.backward_seconds == both.optimizer_seconds == both.spread == (0.0, 0.0, 0.0)
    assert (both.kind, both.origin) == ("l4", "estimated")


@pytest.mark.parametrize("slower, faster", [("t4", "v100-sxm-32gb"), ("v100-sxm-32gb", "a100-sxm-80gb"),
                                            ("a100-sxm-80gb", "h100-sxm-80gb"), ("rtx-3090", "rtx-4090"),
                                            ("cpu-generic-16c-avx2", "t4")])  # fmt: skip
def test_a_faster_kind_is_faster(slower: str, faster: str) -> None:
    chain = graph((work(flops=10**11, traffic=10**8), work("normalization", traffic=10**8, calls=3)))
    times = [estimate(chain, kind(name), training=True, optimizer="adamw") for name in (faster, slower)]
    assert times[0].forward_seconds < times[1].forward_seconds
    assert times[0].backward_seconds < times[1].backward_seconds
    assert times[0].optimizer_seconds < times[1].optimizer_seconds


def test_what_stands_in_for_a_missing_type_is_said() -> None:
    chain = graph((work(dtype="bfloat16", flops=10**10),))
    on_t4 = estimate(chain, kind("t4"), training=False, optimizer="none")
    assert "bfloat16 at the float32 rate" in on_t4.basis
    on_a100 = estimate(chain, kind("a100-sxm-80gb"), training=False, optimizer="none")
    assert " rate" not in on_a100.basis


def test_half_types_without_units_are_named_with_what_computes_them() -> None:
    mixed = graph((work(dtype="bfloat16", flops=10**9),), (work(dtype="float32", flops=10**9),))
    there = {name: estimate(mixed, kind(name), training=False, optimizer="none") for name in ("t4", "a10")}
    assert there["t4"].computes_as == (("bfloat16", "float32"),) and there["a10"].computes_as == ()
    assert there["t4"].forward_seconds[0] >= 0.9 * there["t4"].forward_seconds[1]
    half = estimate(graph((work(dtype="float16", flops=10**9),)), kind("t4"), training=False, optimizer="none")
    assert half.computes_as == () and half.forward_seconds[0] < there["t4"].forward_seconds[0]


def test_backward_over_forward() -> None:
    def ratio(family: str, flops: int, traffic: int) -> float:
        times = estimate(
            graph((work(family, flops=flops, traffic=traffic),) * 2, weight_bytes=4, input_wants_gradient=True),
            kind("a100-sxm-40gb"),
            training=True,
            optimizer="none",
        )
        return times.backward_seconds[0] / times.forward_seconds[0]

    assert ratio("gemm", 10**12, 10**9) == pytest.approx(2.0, rel=0.01)
    assert 1.5 < ratio("softmax", 0, 10**9) < 3
    assert 1.5 < ratio("normalization", 0, 10**9) < 3.2


def test_only_the_gradients_that_are_asked_for() -> None:
    gemm = (work(flops=10**12, traffic=10**9),)

    def backward(*trainable: bool) -> tuple[float, ...]:
        chain = graph(gemm, gemm, gemm, trainable=trainable, weight_bytes=4)
        return estimate(chain, kind("l4"), training=True, optimizer="none").backward_seconds

    frozen_first, full = backward(False, True, True), backward(True, True, True)
    assert frozen_first[0] == 0  # nothing before it learns
    assert full[0] == pytest.approx(full[1] / 2, rel=0.01)  # the model's input wants no gradient
    assert backward(True, False, True)[1] == pytest.approx(full[1] / 2, rel=0.01)  # passes its input's gradient on
    assert backward(False, False, False) == (0, 0, 0)


def test_the_optimizer_updates_trainable_weights_once() -> None:
    gemm = (work(flops=10**9),)
    l4 = kind("l4")

    def update(optimizer: str, chain: Graph) -> tuple[float, ...]:
        return estimate(chain, l4, training=True, optimizer=optimizer).optimizer_seconds

    chain = graph(gemm, gemm)
    per_pass = 4_000_000 / (shipped_laws().vector.efficiency * 0.9 * 300e9)
    assert update("sgd", chain) == pytest.approx((3 * per_pass,) * 2)
    assert update("adamw", chain)[0] == pytest.approx(OPTIMIZER_PASSES["adamw"] * per_pass)
    assert update("none", chain) == (0, 0)
    assert update("sgd", graph(gemm, gemm, tied=True))[1] == 0
    assert update("sgd", graph(gemm, gemm, trainable=(False, True)))[0] == 0
    with pytest.raises(KeyError):
        update("lion", chain)


def test_a_kind_of_ones_own() -> None:
    def figure(value: float) -> Figure:
        return Figure(value=value, source="given", confidence="high")

    own = Kind(
        name="odd",
        vendor="given",
        architecture="given",
        year=None,
        memory_bytes=figure(8e9),
        bandwidth_bytes_per_second=figure(300e9),
        peaks=(Peak(dtype="float16", flops_per_second=figure(20e12)),),
        link="pcie-3-x16",
        host_link="pcie-3-x16",
    )
    times = estimate(graph((work(flops=10**12),)), own, training=True, optimizer="adamw")
    assert times.forward_seconds[0] == pytest.approx(10**12 / (20e12 * 229 / 1677), rel=0.3)
    assert "float32 at 0.137 x the float16 rate" in times.basis


def test_says_how_far_estimates_were_off() -> None:
    errors = {error.what: error.mean for error in law_file().errors}
    basis = estimate(graph((work(flops=10**10),)), kind("l4"), training=False, optimizer="none").basis
    assert f"off by {errors['whole model']:.0%} for whole models" in basis
    assert 0.01 < errors["whole model"] < errors["fp32 elementwise"] < 0.5


def test_tf32_is_a_choice_where_the_card_has_it() -> None:
    chain = graph((work(flops=10**12, traffic=10**8),))

    def seconds(name: str, tf32: bool) -> float:
        return estimate(chain, kind(name), training=False, optimizer="none", tf32=tf32).forward_seconds[0]

    assert seconds("a100-sxm-80gb", False) > 4 * seconds("a100-sxm-80gb", True)
    assert seconds("v100-sxm-32gb", False) == seconds("v100-sxm-32gb", True)


def test_a_measured_kind_corrects_the_estimate_of_another() -> None:
    chain = graph((work(flops=10**12, traffic=10**8),), (work("softmax", traffic=10**9),))
    t4, l4 = (estimate(chain, kind(name), training=True, optimizer="sgd") for name in ("t4", "l4"))
    assert corrected(l4, t4, t4).forward_seconds == pytest.approx(l4.forward_seconds)
    slower = dataclasses.replace(t4, origin="measured", forward_seconds=(4 * t4.forward_seconds[0], 0.0))
    better = corrected(l4, slower, t4)
    assert better.forward_seconds[0] == pytest.approx(3**0.5 * l4.forward_seconds[0])  # no more than threefold counts
    assert better.forward_seconds[1] == l4.forward_seconds[1]  # nothing was measured
    assert better.origin == "estimated"
    assert "measured on t4" in better.basis
