"""Plans and measurements made by hand, for the tests of whatever only reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from autopart.schema.device import Cluster, Device, Link
from autopart.schema.job import Job
from autopart.schema.measurement import Measurement, SingleRun, StageMeasurement
from autopart.schema.plan import (
    Baseline,
    Check,
    Excluded,
    Memory,
    ModelSummary,
    Origin,
    Plan,
    PlanWarning,
    Prediction,
    Proof,
    Schedule,
    Stage,
    Transfer,
)

MILLISECOND = 1e-3


def a_device(name: str, kind: str = "rtx-4090", *, backend: Literal["cuda", "cpu", "absent"] = "absent") -> Device:
    return Device(
        name=name, kind=kind, node="local", memory_bytes=24 * 10**9, memory_origin="data sheet less 0.6 GB for CUDA",
        backend=backend,
    )


def a_stage(index: int, device: str, layers: tuple[str, ...], *, training: bool = False) -> Stage:
    memory = Memory(
        parameters=300_000_000, gradients=300_000_000 * training, optimizer=600_000_000 * training,
        activations=50_000_000, workspace=20_000_000, communication=5_000_000,
    )
    return Stage(
        index=index, devices=(device,), layers=layers, parameter_bytes=300_000_000, peak_bytes=memory.total,
        capacity_bytes=24 * 10**9, forward_seconds=(index + 1) * MILLISECOND,
        backward_seconds=2 * (index + 1) * MILLISECOND * training, optimizer_seconds=MILLISECOND * training,
        utilisation=0.4 + 0.4 * index, memory=memory,
        weights=tuple(f"{layer}.weight" for layer in layers),
    )


CHECKS = (
    Check(name="values", outcome="skipped", detail="the weights have no values (meta device)"),
    Check(name="devices", outcome="passed", detail="every operator's tensors are on one of 2 devices, forward"),
)
BLOCKS = tuple(f"h.{index}" for index in range(5))


def a_plan(*, training: bool = False) -> Plan:
    """Six layers on two of three devices; the cut lies between blocks 1 and 2 and one value crosses it."""
    devices = (a_device("rtx-4090:0"), a_device("rtx-4090:1"), a_device("t4:0", "t4"))
    return Plan(
        verdict="Use rtx-4090:0 and rtx-4090:1 and leave out t4:0; 1.60x as fast as the best single device.",
        model=ModelSummary(name="toy", fingerprint="abc123", num_layers=6, num_parameters=150_000_000),
        job=Job(mode="train" if training else "infer", batch=32, optimizer="adamw" if training else "none"),
        cluster=Cluster(devices=devices, links=(
            Link(level="node", ends=("local", "local"), latency_seconds=1e-5, bandwidth_bytes_per_second=12e9,
                 origin="assumed", source="PCIe 4 through the host"),
        )),
        stages=(
            a_stage(0, "rtx-4090:0", ("embed", *BLOCKS[:2]), training=training),
            a_stage(1, "rtx-4090:1", BLOCKS[2:], training=training),
        ),
        transfers=(Transfer(tensor="h", from_stage=0, to_stage=1, bytes=2_000_000, seconds=2e-4),),
        schedule=Schedule(name="gpipe", num_microbatches=8, warmup=(0, 0)),
        prediction=Prediction(
            step_seconds=0.0188, latency_seconds=0.0032, throughput_per_second=32 / 0.0188, bubble_fraction=0.24,
            cost_per_million=0.41,
        ),
        proof=Proof(
            objective_seconds=0.0188, bound_seconds=0.01879, bound="threshold IP over layers", gap=0.0188 / 0.01879 - 1,
            outcome="proven", solver="cbc", solve_seconds=0.31,
        ),
        baselines=(
            Baseline(name="even", description="equal numbers of layers on all devices in the given order", fits=True,
                     step_seconds=0.0402, factor=0.0402 / 0.0188, reason=""),
            Baseline(name="single-device", description="everything on rtx-4090:0", fits=False, step_seconds=None,
                     factor=None, reason="rtx-4090:0 is short by 1.2 GB"),
        ),
        excluded=(Excluded(device="t4:0", reason="the best plan that uses it is 1.07x slower"),),
        warnings=(PlanWarning(
            code="bubble", message="24 % of the devices' time is waiting", suggestion="give --microbatches 16"
        ),),
        origin=Origin(
            profile="estimated", bases=("rtx-4090: estimated, roofline, data sheet",), links=("local: PCIe 4, assumed",)
        ),
        checks=CHECKS,
    )


def one_device_plan() -> Plan:
    plan = a_plan()
    stage = a_stage(0, "rtx-4090:0", plan.stages[0].layers + plan.stages[1].layers)
    return replace(
        plan, stages=(stage,), transfers=(), cluster=replace(plan.cluster, devices=plan.cluster.devices[:1]),
        excluded=(), schedule=Schedule(name="gpipe", num_microbatches=1, warmup=(0,)), baselines=(), warnings=(),
    )


def a_measurement(*, training: bool = False, single: bool = True) -> Measurement:
    """A run of ``a_plan``."""
    stages = tuple(
        StageMeasurement(
            index=index, device=device, forward_seconds=(index + 1) * 1.1 * MILLISECOND,
            backward_seconds=(index + 1) * 2.1 * MILLISECOND * training, optimizer_seconds=1.2e-3 * training,
            busy_seconds=0.0088 * (index + 1), utilisation=0.42 + 0.4 * index, peak_bytes=390_000_000,
            memory_origin="peak resident set less that after imports",
        )
        for index, device in enumerate(("rtx-4090:0", "rtx-4090:1"))
    )
    return Measurement(
        mode="train" if training else "infer", batch=32, num_microbatches=8, schedule="gpipe",
        step_seconds=(0.0199, 0.0201, 0.0200), median_step_seconds=0.02, total_seconds=0.06,
        throughput_per_second=1600.0, losses=(2.5, 2.25, 2.125) if training else (),
        predicted_step_seconds=0.0188, pace=0.8, stages=stages,
        single=SingleRun(device="rtx-4090:0", step_seconds=(0.03, 0.031, 0.032), median_step_seconds=0.031,
                         throughput_per_second=1000.0, peak_bytes=750_000_000) if single else None,
        single_skipped_because="" if single else "--no-single", gain=0.6 if single else None,
        alternating=single,
        verdict="Splitting pays: 1.60x the throughput of rtx-4090:0 alone.", versions=("torch 2.13.0",),
    )
