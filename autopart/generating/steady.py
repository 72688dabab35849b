"""The verb plan where text is generated: prefill and decode are priced apart, then planned as one steady state."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import nn

from autopart.advising import advised
from autopart.errors import UsageError
from autopart.generating.decoders import Decoder, decoder_of
from autopart.generating.maker import Maker, group_counts
from autopart.generating.phases import Phases, WeightShape
from autopart.generating.requestadvice import request_finders
from autopart.generating.tokenlaw import TokenLaw
from autopart.modelsource import Source, with_weights
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster
from autopart.schema.generation import Requests
from autopart.schema.graph import Graph
from autopart.schema.plan import Check, Plan, PlanWarning
from autopart.tracecache import Traced, traced
from autopart.units import format_count, format_seconds

__all__ = ["group_counts", "plan_generation", "requests_of"]

STEP = re.compile(r"(?: with \d+ micro-batch(?:es)?)?, [^,;()]+ a step")
"""in a verdict, how many micro-batches and how long they take"""

STEPS = re.compile(r" \([^()]* a step\)")

PIPELINES = "plans pipelines of one device a stage"
REFUSED = {
    "compress": "sends what crosses as it is",
    "stage_dtype": "computes all stages in the model's type (float16, with --dtype, is one that most kinds have)",
    "schedule": "has no backward to order",
    "optimizer": "does not train",
    "recompute": "does not train",
}

LENGTH = 2
"""tokens of a sequence in the traces (of 3 sequences and more); a single one is a case of its own to some models"""


def requests_of(words: dict[str, Any]) -> tuple[Requests, dict[str, Any]]:
    """What is asked for, and the words that are left for the job.

    Raises:
        UsageError: a word is missing, wrong, or not for generation.
    """
    left = {key: value for key, value in words.items() if value is not None and key != "mode"}
    if left.pop("batch", None) is not None:
        raise UsageError("--mode generate has no --batch; give --concurrency, the requests that are served at once")
    try:
        requests = Requests(
            prompt_tokens=left.pop("prompt_tokens", 2048), new_tokens=left.pop("new_tokens", 256),
            concurrency=left.pop("concurrency", 1), weights=left.pop("weights", "as-built"),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{error}; see `autopart plan --help`") from error
    fixed = {
        "tensor_parallel": 1, "data_parallel": 1, "compress": "none", "schedule": "gpipe", "optimizer": "none",
        "recompute": "never", "stage_dtype": "keep",
    }
    for name, value in fixed.items():
        if left.get(name, value) != value:
            raise UsageError(f"--mode generate {REFUSED.get(name, PIPELINES)}; leave --{name.replace('_', '-')} out")
    if left.get("objective", "throughput") not in ("throughput", "latency"):
        raise UsageError(f"--objective {left['objective']} is not for --mode generate; give throughput or latency")
    return requests, left


def plan_generation(
    source: Source, cluster: Cluster, words: dict[str, Any], *, progress: Progress = silent, fresh: bool = False,
    advice: bool = False,
) -> Plan:  # fmt: skip
    """The plan with most tokens per second, or the shortest time to the first token (objective latency).

    Times are estimates even where a device is here: a run with a cache is not measured.

    Args:
        source: whose model is a transformers decoder.
        cluster: with its links.
        words: the job's, with prompt_tokens, new_tokens, concurrency and weights.
        progress: told about tracing and planning.
        fresh: trace what is in the cache too.
        advice: say what would be better, and what would change the plan.

    Raises:
        UsageError: a word is wrong, or the model is no decoder whose cache is known.
        InfeasibleError: nothing fits.
    """
    requests, left = requests_of(words)
    source = with_weights(source)
    decoder = decoder_of(source.model, source.name)
    if decoder.most_tokens is not None and requests.context_tokens > decoder.most_tokens:
        raise UsageError(
            f"{source.name} knows {decoder.most_tokens} positions, fewer than the {requests.prompt_tokens} of the "
            f"prompt and {requests.new_tokens} new ones; give a shorter --prompt or --new-tokens"
        )
    phases = _phases(source, decoder, requests, progress, fresh)
    maker = Maker(phases, requests, cluster, left, progress)
    best = maker.soonest() if left.get("objective") == "latency" else maker.most()
    check = Check(name="values", outcome="skipped", detail="a plan for generation is priced, not run")
    best = dataclasses.replace(_in_tokens(best), checks=(check,), warnings=(*best.warnings, *_assumed(cluster)))
    if not advice:
        return best
    own, *others = sorted(maker.cases(), key=lambda case: case.job != best.job)
    return advised(best, own.candidates, others=tuple(others), more=request_finders(maker), progress=progress)


def _in_tokens(plan: Plan) -> Plan:
    """The plan with a verdict about tokens: its step, of many rounds, is of no interest to who reads text."""
    given = plan.generation
    assert given is not None, "a plan of generated text"
    first, each = map(format_seconds, (given.time_to_first_token_seconds, given.time_per_output_token_seconds))
    number = given.tokens_per_second
    rate = f"{format_count(number) if number >= 1000 else f'{number:.3g}'} new tokens/s"
    now = f"{first} to the first token, {rate}" if plan.job.objective == "latency" else (
        f"{rate}, a token of each request every {each}"
    )
    ways = f" with {given.num_groups} groups of requests" if len(plan.stages) > 1 < given.num_groups else ""
    verdict = STEP.sub(lambda _: f"{ways}, {now}", plan.verdict, count=1)
    excluded = tuple(dataclasses.replace(each, reason=STEPS.sub("", each.reason)) for each in plan.excluded)
    return dataclasses.replace(plan, verdict=STEPS.sub("", verdict), excluded=excluded)


def _phases(source: Source, decoder: Decoder, requests: Requests, progress: Progress, fresh: bool) -> Phases:
    """By traces of a few tokens and of many."""
    few, many = 3, max(2 * LENGTH * LENGTH, requests.concurrency, requests.prompt_tokens) // LENGTH
    graphs = []
    for done, rows in enumerate((few, many)):
        progress("tracing", done, 2)
        graphs.append(_traced(source, rows, fresh).graph)
    progress("tracing", 2, 2)
    law = TokenLaw(graphs[0], graphs[1], LENGTH * few, LENGTH * many)
    return Phases(law, decoder, requests, _shapes(source.model, graphs[0]), source.name)


def _traced(source: Source, rows: int, fresh: bool) -> Traced:
    device = next(source.model.parameters()).device
    tokens = torch.zeros((rows, LENGTH), dtype=torch.long, device=device)
    sized = dataclasses.replace(source, args=(), kwargs={"input_ids": tokens}, recipe=None)
    return traced(sized, training=False, fresh=fresh)


def _shapes(model: nn.Module, graph: Graph) -> dict[int, WeightShape]:
    """Of the weights that products read."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    plain = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    plain |= {id(head.weight)} if head is not None else set()
    experts = {tensor.shape[0] for tensor in model.parameters() if tensor.dim() == 3}
    own, found = dict(model.named_parameters(remove_duplicate=False)), {}
    for index, weight in enumerate(graph.weights):
        tensor = own.get(weight.name)
        if tensor is None or tensor.dim() not in (2, 3) or "bias" in weight.name.rpartition(".")[2]:
            continue
        routes = tensor.dim() == 2 and tensor.shape[0] in experts
        found[index] = WeightShape(shape=tuple(tensor.shape), is_quantised=id(tensor) not in plain and not routes)
    return found


def _assumed(cluster: Cluster) -> tuple[PlanWarning, ...]:
    """What the user should know of the figures."""
    here = [device.name for device in cluster.devices if device.backend != "absent"]
    if not here:
        return ()
    return (
        PlanWarning(
            code="generation-estimated",
            message=f"{', '.join(here)} could be measured, but a forward pass with a cache is not: times are estimates",
            suggestion="compare with the engine you serve with",
        ),
    )
