"""Published measurements as samples: an operator, the kind of device it ran on, the seconds it took.

The files and their columns are described in the README of the data directory.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autopart.errors import FileFormatError
from autopart.schema.graph import Work

__all__ = ["DTYPES", "FILES", "SAILOR_WIDTHS", "ModelRun", "Sample", "make_work", "model_runs",
           "neusight_operators", "read_rows", "sailor_operators", "vidur_operators"]

LINEAR = re.compile(
    r"linear|Conv1D|lm_head|decoder|query|key|value|dense|pooler|classifier|fc_?\w*|w[io]|c_\w+|\w_proj|out_proj"
)
"""names of modules that are one matrix product"""

FILES = ("ops_neusight_fp32.csv", "ops_vidur_fp16.csv", "ops_sailor_train.csv", "layers_sailor_train.csv",
         "models_neusight_fp32.csv", "modelops_neusight_fp32.csv", "net_sailor_collectives.csv")  # fmt: skip

FREE = ("view", "permute", "transpose", "reshape", "split", "getitem", "size")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured operator."""

    kind: str
    """of the catalogue"""
    label: str
    """what the file calls it"""
    work: Work
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRun:
    """One measured model with its operators in order; a layer's operators carry the number of layers in num_calls."""

    kind: str
    name: str
    training: bool
    forward: tuple[Sample, ...]
    """a sample's ``seconds`` is one call's"""
    forward_seconds: float
    backward_seconds: float
    """0 when not training"""
    parameter_bytes: int


def read_rows(folder: Path, name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of a CSV file of the data directory.

    Raises:
        FileFormatError: the file is not there.
    """
    path = folder / name
    if not path.is_file():
        raise FileFormatError(f"{name} is not in {folder}; give the directory that holds the calibration data")
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def neusight_operators(folder: Path) -> tuple[Sample, ...]:
    """Lone operators in float32, forward, between CUDA events (ops_neusight_fp32.csv)."""
    return tuple(
        Sample(
            kind=row["gpu"].lower(), label=row["op"], work=_neusight_work(row), seconds=float(row["fwd_ms"]) / 1e3
        )
        for row in read_rows(folder, "ops_neusight_fp32.csv")
    )


def _neusight_work(row: Mapping[str, str]) -> Work:
    def size(name: str) -> int:
        return int(float(row[name]))

    operator, traffic, flops = row["op"], size("bytes"), size("flops")
    if operator in ("bmm", "linear"):
        product = (size("b"), size("m"), size("n"), size("k"))
        return make_work("gemm", operator, "float32", product, flops, traffic)
    if operator == "conv":
        named = {name: int(value) for name, value in (part.split("=") for part in row["shape"].split(";"))}
        pixels = (named["hw"] // named["stride"]) ** 2
        shape = (size("b"), named["cin"], named["cout"], named["hw"] ** 2, pixels, named["ks"] ** 2, 1)
        return make_work("convolution", operator, "float32", shape, flops, traffic)
    if operator in ("softmax", "ln"):
        family = "softmax" if operator == "softmax" else "normalization"
        return make_work(family, operator, "float32", (size("b"), size("n")), 0, traffic)
    return make_work("elementwise", operator, "float32", (), 0, traffic)


def vidur_operators(folder: Path) -> tuple[Sample, ...]:
    """Operators of Llama models in float16 on an A100, kernel time (ops_vidur_fp16.csv)."""
    return tuple(
        Sample(
            kind="a100-sxm-80gb",
            label=row["op"],
            work=make_work(
                "gemm", "linear", "float16", (1, int(row["m"]), int(row["n"]), int(row["k"])), int(row["flops"]),
                int(row["bytes"]),
            ),
            seconds=float(row["fwd_ms"]) / 1e3,
        )
        for row in read_rows(folder, "ops_vidur_fp16.csv")
        if row["op"].startswith("linear")
    )  # fmt: skip


def sailor_operators(folder: Path) -> tuple[Sample, ...]:
    """Matrix products of Megatron layers, forward (ops_sailor_train.csv).

    Products that are followed by an all-reduce (attention-dense and MLP-GEMM-2 on several cards) are left out, and so
    are the output layer, which contains the loss, and the attention products, which contain scaling and masking.
    """
    samples = []
    for row in read_rows(folder, "ops_sailor_train.csv"):
        shape = _sailor_product(row)
        if shape:
            dtype = "tf32" if row["tf32"] == "1" else DTYPES[row["dtype"]]
            batch, m, n, k = shape
            traffic = batch * (m * k + k * n + m * n) * (2 if dtype == "float16" else 4)
            work = make_work("gemm", "linear", dtype, shape, 2 * batch * m * n * k, traffic)
            seconds = float(row["fwd_ms"]) / 1e3
            samples.append(Sample(kind=row["gpu"].lower(), label=row["op"], work=work, seconds=seconds))
    return tuple(samples)


SAILOR_WIDTHS = {"GPT-Neo-2.7": 2560, "OPT-350": 1024}


def _sailor_product(row: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    parts, tokens = int(row["tp"]), int(row["mbs"]) * int(row["seq"])
    width = SAILOR_WIDTHS[row["model"]]
    if row["op"] == "enc-MLP-GEMM-1":
        return 1, tokens, 4 * width // parts, width
    if parts == 1 and row["op"] == "enc-MLP-GEMM-2":
        return 1, tokens, width, 4 * width
    if parts == 1 and row["op"] == "enc-attention-dense":
        return 1, tokens, width, width
    return None


def model_runs(folder: Path) -> tuple[ModelRun, ...]:
    """Whole models in float32 (models_neusight_fp32.csv) with their operators (modelops_neusight_fp32.csv)."""
    keys = ("gpu", "model", "mode", "seq", "batch")
    operators: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in read_rows(folder, "modelops_neusight_fp32.csv"):
        operators.setdefault(tuple(row[key] for key in keys), []).append(row)
    return tuple(
        ModelRun(
            kind=row["gpu"].lower(),
            name=f"{row['model']} {row['mode']} batch {row['batch']}",
            training=row["mode"] == "train",
            forward=(forward := tuple(_model_samples(operators[tuple(row[key] for key in keys)], row))),
            forward_seconds=float(row["fwd_ms"]) / 1e3,
            backward_seconds=float(row["bwd_ms"]) / 1e3,
            parameter_bytes=sum(_parameter_bytes(sample) for sample in forward),
        )
        for row in read_rows(folder, "models_neusight_fp32.csv")
    )


def _model_samples(rows: list[Mapping[str, str]], model: Mapping[str, str]) -> Iterator[Sample]:
    repeated = [".N." in row["op"] for row in rows]
    last = len(rows) - repeated[::-1].index(True)  # functions after it belong to the layer, up to the next module
    while last < len(rows) and "." not in rows[last]["op"] and rows[last]["op"] != "lm_head":
        last += 1
    for index, row in enumerate(rows):
        name = row["op"].rsplit(".", 1)[-1].removeprefix("<function ").split(" ")[0]
        inside = repeated.index(True) <= index < last
        num_calls = int(model["num_layers"]) if inside else 1
        idle = "drop" in name and model["mode"] != "train"
        if name in FREE or idle:
            continue
        work = _model_work(name, json.loads(row["in_shapes"]), [int(size) for size in row["out_shape"].split("x")])
        yield Sample(
            kind=row["gpu"].lower(),
            label=name,
            work=Work(
                family=work.family, dtype=work.dtype, num_calls=num_calls, flops=work.flops * num_calls,
                traffic_bytes=work.traffic_bytes * num_calls, operator=work.operator, shape=work.shape,
            ),
            seconds=float(row["fwd_ms"]) / 1e3,
        )  # fmt: skip


def _model_work(name: str, inputs: list[list[int]], output: list[int]) -> Work:
    elements = _product(output)
    if name in ("addmm", "matmul", "bmm") or LINEAR.fullmatch(name):
        left = inputs[1] if name == "addmm" else inputs[0]
        n, k = output[-1], left[-1]
        batched = name in ("matmul", "bmm")
        batch = _product(output[:-2]) if batched else 1
        m = elements // n // batch
        traffic = 4 * batch * (m * k + k * n + m * n)
        operator = "bmm" if batched else "linear"
        return make_work("gemm", operator, "float32", (batch, m, n, k), 2 * batch * m * n * k, traffic)
    if re.match("ln_|.*(layer_?norm|LayerNorm)", name):
        return make_work("normalization", "ln", "float32", (elements // output[-1], output[-1]), 0, 8 * elements)
    if name == "softmax":
        return make_work("softmax", "softmax", "float32", (elements // output[-1], output[-1]), 0, 8 * elements)
    if name in ("wte", "wpe") or "embed" in name:
        return make_work("embedding", "embedding", "float32", (), 0, 8 * elements)
    if name == "contiguous":
        return make_work("copy", "clone", "float32", (), 0, 8 * elements)
    if "drop" in name:
        return make_work("elementwise", "dropout", "float32", (), 0, 11 * elements)
    read = [each for each in inputs if _product(each) == elements]
    operator = {"truediv": "div"}.get(name, name)
    traffic = 4 * (sum(map(_product, read)) + elements)
    return make_work("elementwise", operator, "float32", (len(read), elements), 0, traffic)


def _parameter_bytes(sample: Sample) -> int:
    """Of one operator, all layers: weights and biases of products; the rest hardly counts."""
    if sample.work.operator != "linear":
        return 0
    _, _, n, k = sample.work.shape
    return 4 * (n * k + n) * sample.work.num_calls


def make_work(family: str, operator: str, dtype: str, shape: tuple[int, ...], flops: int, traffic: int) -> Work:
    """One call of an operator."""
    return Work(
        family=family, dtype=dtype, num_calls=1, flops=flops, traffic_bytes=traffic, operator=operator, shape=shape
    )


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
