"""Stages of a bfloat16 model that compute in float16 or float32: segments, split modules, pipelines in one process."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from autopart.errors import MismatchError, UsageError
from autopart.program import Program
from autopart.recasting import in_type
from autopart.running import LocalPipeline
from autopart.schema.job import ScheduleName
from autopart.segment import Runner
from autopart.splitting import SplitModule, StagePlacement, verify
from autopart.tracing import trace
from tests.running.handmade import make_plan
from tests.zoo import CPU, tracer

NAMES = ("enter", "norm", "hidden", "leave")
HALF = torch.bfloat16


class Masked(nn.Module):
    """A mask of bfloat16's least value, which is none of float16; a type named in the code; running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.hidden = nn.Linear(32, 32)
        self.leave = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = torch.relu(self.norm(self.enter(x)))
        mask = torch.full((32,), torch.finfo(HALF).min, dtype=HALF).masked_fill(torch.arange(32) < 16, 0.0)
        shares = (self.hidden(value).float().to(HALF) + mask).softmax(-1)
        result: torch.Tensor = self.leave(shares * value)
        return result


def made(dtype: str, *, training: bool) -> tuple[nn.Module, SplitModule]:
    torch.manual_seed(3)
    model = Masked().to(HALF).train(training)
    stages = [StagePlacement(layers=(name,), device=CPU, dtype=dtype if name != "enter" else "") for name in NAMES]
    return copy.deepcopy(model), SplitModule(model, stages, tracer)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    wanted = expected.detach().double()
    return float((found.detach().double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("dtype", "training"), [("float32", True), ("float32", False), ("float16", False)])
def test_outputs_and_gradients_are_nearly_the_models(dtype: str, training: bool) -> None:
    model, split = made(dtype, training=training)
    x, target = torch.randn(8, 16).to(HALF), torch.randn(8, 4).to(HALF)
    found, expected = split(x), model(x)
    assert found.dtype == HALF and error(found, expected) < 0.02
    for output in (found, expected):
        torch.autograd.backward(nn.functional.mse_loss(output, target))
    for (name, one), other in zip(model.named_parameters(), split.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and other.grad.dtype == HALF
        assert error(other.grad, one.grad) < 0.05 or one.grad.norm() < 1e-4 * (1 + one.norm()), name
    for before, after in zip(model.buffers(), split.buffers(), strict=True):
        torch.testing.assert_close(after, before, rtol=0.02, atol=0.01)
    assert int(split.norm.num_batches_tracked) == int(training)


def test_a_whole_model_in_float32_is_nearer_to_float32_than_to_its_own_type() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(6))).to(HALF)
    full, x = copy.deepcopy(model).float(), torch.randn(8, 32).to(HALF)
    split = SplitModule(copy.deepcopy(model), [StagePlacement(layers=("0.0",), device=CPU, dtype="float32")], tracer)
    found, exact = split(x), full(x.float())
    torch.testing.assert_close(found, exact.to(HALF), rtol=0, atol=0)
    assert error(found, exact) < error(model(x), exact)


def test_verify_allows_rounding_and_says_so_and_finds_a_wrong_stage() -> None:
    _, split = made("float32", training=True)
    x = torch.randn(8, 16).to(HALF)
    compared = verify(split, split.__dict__["_whole"], (x,), {})
    assert compared.tolerance == pytest.approx(0.0884, abs=1e-3) and not compared.is_exact
    last = split.stitched((x,), {}).segments[-1]
    assert last.runner is not None
    last.run_by(Wrong(last.runner))
    with pytest.raises(MismatchError, match="output 0 differs"):
        verify(split, split.__dict__["_whole"], (x,), {})


class Wrong:
    """A fifth too much."""

    def __init__(self, right: Runner) -> None:
        self._right = right

    def __call__(self, body: fx.GraphModule, values: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(result * 1.2 for result in self._right(body, values))

    def begin_step(self) -> None:
        pass


def test_the_least_number_of_a_mask_stays_finite_and_infinity_infinite() -> None:
    mask = torch.tensor([torch.finfo(HALF).min, -torch.inf, 1.5], dtype=HALF)
    assert in_type(mask, "float16").tolist() == [-65504.0, -torch.inf, 1.5]
    assert in_type(mask, "") is mask and in_type(torch.arange(3), "float16").dtype == torch.int64


class OldMask(nn.Module):
    """Masks as older models make them: numbers of float32 that bfloat16 has and float16 has not."""

    least: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("least", torch.tensor(torch.finfo(HALF).min), persistent=False)

    def forward(self, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        value = self.enter(x)
        mask = (1.0 - kept[:, None, :].float()) * (torch.finfo(torch.float32).min / 2)
        scores = value @ value.transpose(-1, -2) + mask.to(value.dtype)
        scores = torch.where(kept[:, None, :] > 0, scores, self.least)
        result: torch.Tensor = self.leave(scores.softmax(-1) @ value)
        return result


def test_a_mask_made_in_float32_stays_finite_where_it_is_cast() -> None:
    torch.manual_seed(5)
    model, kept = OldMask().to(HALF), torch.ones(2, 8, dtype=torch.long)
    model.least = model.least.float()
    kept[0, :3], kept[1] = 0, 0  # padding, and a row of nothing else
    x = torch.randn(2, 8, 16).to(HALF)
    split = SplitModule(
        copy.deepcopy(model), [StagePlacement(layers=("enter", "leave"), device=CPU, dtype="float16")], tracer
    )
    assert error(split(x, kept), model(x, kept)) < 0.01
    endless = split.stitched((x, kept), {}).segments[0]
    clamps = [node for node in endless.body.graph.nodes if node.target is torch.ops.aten.clamp.default]
    assert len(clamps) == 2, "of the masks, not of what is computed"


def test_infinity_in_a_cast_stays_infinite() -> None:
    class Endless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.float() * 1e30 / torch.tensor([1.0, 0.0])).to(HALF) + x

    program = trace(Endless(), (torch.ones(2, dtype=HALF),), training=False)
    (found,) = replace(program, stage_dtype="float16").segment(0, len(program.graph.layers))(torch.ones(2, dtype=HALF))
    assert found.tolist() == [65536.0, torch.inf]  # 65,504 in bfloat16


def test_a_padded_llama_with_stages_in_float16_is_nearly_as_it_was() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=64, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(HALF).eval()
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    words = {"input_ids": torch.randint(0, 64, (2, 8)), "attention_mask": mask}
    stages = [
        StagePlacement(layers=("model.embed_tokens",), device=CPU),
        StagePlacement(layers=("model.layers.0.self_attn.q_proj",), device=CPU, dtype="float16"),
    ]
    split = SplitModule(copy.deepcopy(model), stages, tracer)
    assert not verify(split, model, (), words).is_exact


def traced(*, training: bool) -> Program:
    torch.manual_seed(4)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))).to(HALF)
    return trace(model, (torch.randn(2, 16).to(HALF),), training=training)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_pipeline_trains_weights_of_the_models_type(schedule: ScheduleName, recompute: bool) -> None:
    x, target = torch.randn(8, 16).to(HALF), torch.randn(8, 16).to(HALF)
    results = []
    for dtype in ("", "float32"):
        program = traced(training=True)
        (cut, *_) = program.graph.legal_cuts
        plan = make_plan(program.graph, (cut,), num_microbatches=4, mode="train", schedule=schedule)
        stages = (plan.stages[0], replace(plan.stages[1], dtype=dtype, recompute=recompute))
        pipe = LocalPipeline(
            program, replace(plan, stages=stages), loss_fn=nn.functional.mse_loss,
            optimizer=lambda weights: torch.optim.SGD(weights, lr=2.0),
        )
        losses = [float(pipe.step(x, target=target)) for _ in range(3)]
        results.append((losses, [weight.detach().clone() for weight in pipe.weights().values()]))
    (plain, weights), (other, others) = results
    assert other == pytest.approx(plain, rel=0.03) and other[2] < 0.9 * other[0]
    for one, two in zip(weights, others, strict=True):
        assert one.dtype == two.dtype == HALF and error(two, one) < 0.01


def test_a_pipeline_in_float16_holds_its_weights_once_in_that_type() -> None:
    program = traced(training=False)
    (cut, *_) = program.graph.legal_cuts
    plan = make_plan(program.graph, (cut,), num_microbatches=2)
    plan = replace(plan, stages=(plan.stages[0], replace(plan.stages[1], dtype="float16")))
    pipe, x = LocalPipeline(program, plan), torch.randn(4, 16).to(HALF)
    found = pipe.step(x)
    assert {weight.dtype for weight in pipe.weights().values()} == {HALF, torch.float16}
    assert found.dtype == HALF and error(found, program.module(x)) < 0.01
    assert {weight.dtype for weight in program.module.parameters()} == {HALF}


def test_what_only_passes_by_is_not_cast() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third, self.fourth = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = self.first(x)
            result: torch.Tensor = self.fourth(self.third(self.second(value))) + value
            return result

    program = trace(Skip().to(HALF), (torch.ones(2, 4, dtype=HALF),), training=False)
    third = [layer.name for layer in program.graph.layers].index("third")
    segment = replace(program, stage_dtype="float16").segment(third, third + 1)
    casts = [node for node in segment.body.graph.nodes if node.target is torch.ops.aten.to.dtype]
    assert len(segment.input_names) == 2 and len(casts) == 1
    values = tuple(torch.ones(2, 4, dtype=HALF) for _ in segment.input_names)
    results = segment(*values)
    assert {each.dtype for each in results} == {HALF}
    assert {id(each) for each in results} & {id(each) for each in values}


def test_what_a_stage_writes_to_what_comes_in_is_written_back() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = self.first(x)
            other = self.second(value)
            value.mul_(3.0)
            result: torch.Tensor = self.third(other) + value
            return result

    torch.manual_seed(1)
    model, x = Writes().to(HALF).eval(), torch.randn(2, 4).to(HALF)
    program = trace(model, (x,), training=False)
    names = [layer.name for layer in program.graph.layers]
    for cut in program.graph.legal_cuts:
        stages = [
            StagePlacement(layers=(names[0],), device=CPU),
            StagePlacement(layers=(names[cut],), device=CPU, dtype="float16"),
        ]
        with torch.no_grad():
            assert error(SplitModule(copy.deepcopy(model), stages, tracer)(x), model(x)) < 0.01
    (found,) = replace(program, stage_dtype="float16").segment(0, len(names))(x)
    assert error(found, model(x)) < 0.01


def test_bits_of_the_models_type_and_autocast_are_refused() -> None:
    class Bits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2).view(torch.int16) + 1

    program = replace(trace(Bits(), (torch.ones(4, dtype=HALF),), training=False), stage_dtype="float16")
    with pytest.raises(UsageError, match=r"reads the bits of a number.*--stage-dtype keep"):
        program.segment(0, len(program.graph.layers))
    with pytest.raises(UsageError, match="autocast"):
        replace(traced(training=True), stage_dtype="float32", autocast=HALF).segment(0, 1)
