"""The verb plan where text is generated: prefill and decode are priced apart, then planned as one steady state."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import nn

from autopart import planning, profiling
from autopart.errors import DeviceError, InfeasibleError, UsageError
from autopart.generating.decoders import Decoder, decoder_of
from autopart.generating.phases import Phases, WeightShape, mixed
from autopart.generating.tokenlaw import TokenLaw
from autopart.modelsource import Source, with_weights
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster
from autopart.schema.generation import Generation, GenerationStage, Requests
from autopart.schema.graph import Graph
from autopart.schema.job import Job
from autopart.schema.plan import Check, Plan, PlanWarning
from autopart.schema.problem import Candidate
from autopart.schema.profile import KindProfile, Profile
from autopart.tracecache import Traced, traced

__all__ = ["group_counts", "plan_generation", "requests_of"]

MOST_ROUNDS = 64
"""tokens of every request in a step of the plan: by then what filling the pipeline takes is little"""

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
        "recompute": "never",
    }
    for name, value in fixed.items():
        if left.get(name, value) != value:
            raise UsageError(f"--mode generate plans pipelines only; leave --{name.replace('_', '-')} out")
    if left.get("objective", "throughput") not in ("throughput", "latency"):
        raise UsageError(f"--objective {left['objective']} is not for --mode generate; give throughput or latency")
    return requests, left


def plan_generation(
    source: Source, cluster: Cluster, words: dict[str, Any], *, progress: Progress = silent, fresh: bool = False
) -> Plan:
    """The plan with most tokens per second, or the shortest time to the first token (objective latency).

    Times are estimates even where a device is here: a run with a cache is not measured.

    Args:
        source: whose model is a transformers decoder.
        cluster: with its links.
        words: the job's, with prompt_tokens, new_tokens, concurrency and weights.
        progress: told about tracing and planning.
        fresh: trace what is in the cache too.

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
    maker = _Maker(phases, requests, cluster, left, progress)
    best = maker.soonest() if left.get("objective") == "latency" else maker.most()
    check = Check(name="values", outcome="skipped", detail="a plan for generation is priced, not run")
    return dataclasses.replace(best, checks=(check,), warnings=(*best.warnings, *_assumed(cluster)))


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


class _Maker:
    """Makes candidates of the phases, has them planned, and reads off what they give."""

    def __init__(
        self, phases: Phases, requests: Requests, cluster: Cluster, words: dict[str, Any], progress: Progress
    ) -> None:
        self._phases, self._requests, self._cluster = phases, requests, cluster
        self._words, self._progress = words, progress
        self._prefill = phases.prefill()
        self._prefill_profile = _estimated(self._prefill, cluster)

    def most(self) -> Plan:
        """The plan with most tokens per second, among all numbers of groups."""
        wanted = self._words.get("microbatches")
        if wanted and self._requests.concurrency % wanted:
            raise UsageError(
                f"{self._requests.concurrency} requests do not divide into {wanted} groups; give another --microbatches"
            )
        counts = (wanted,) if wanted else group_counts(self._requests.concurrency, len(self._cluster.devices))
        found, failed = [], None
        for count in counts:
            try:
                plan = self._grouped(count)
            except InfeasibleError as error:
                failed = failed or error
                continue
            if len(plan.stages) <= count or count == 1 or wanted:
                found.append(plan)
        if not found:
            raise failed or InfeasibleError("no plan was found; give another --concurrency")
        return max(found, key=lambda plan: (cast(Generation, plan.generation).tokens_per_second, -len(plan.stages)))

    def soonest(self) -> Plan:
        """The plan with the shortest time to the first token."""
        decode = self._phases.decode(self._requests.concurrency)
        graph = dataclasses.replace(mixed(self._prefill, decode, 1), values=self._prefill.values)
        job = self._job(batch=1, microbatches=1, objective="latency")
        plan = self._planned(Candidate(num_microbatches=1, graph=graph, profile=self._prefill_profile), (), job)
        counts = group_counts(self._requests.concurrency, len(plan.stages))
        given = (self._given(plan, count) for count in counts)
        return dataclasses.replace(plan, generation=max(given, key=lambda each: each.tokens_per_second))

    def _grouped(self, num_groups: int) -> Plan:
        """The plan for so many groups of requests, which follow one another through the stages."""
        concurrency = self._requests.concurrency
        rounds = min(self._requests.new_tokens, MOST_ROUNDS) if num_groups > 1 else 1
        candidate = self._candidate(num_groups, rounds)
        whole = () if num_groups == 1 else (self._candidate(1, rounds),)
        job = self._job(batch=concurrency * rounds, microbatches=candidate.num_microbatches, rounds=rounds)
        plan = self._planned(candidate, whole, job)
        return dataclasses.replace(plan, generation=self._given(plan, num_groups))

    def _candidate(self, num_groups: int, rounds: int) -> Candidate:
        """Rounds of decode with their share of the prefills."""
        decode = self._phases.decode(self._requests.concurrency // num_groups)
        profile = _estimated(decode, self._cluster)
        tokens = self._requests.new_tokens
        rows = (
            dataclasses.replace(one, forward_seconds=tuple(
                ((tokens - 1) * each + decode.batch_size * prompt) / tokens
                for each, prompt in zip(one.forward_seconds, other.forward_seconds, strict=True)
            ))
            for one, other in zip(profile.kinds, self._prefill_profile.kinds, strict=True)
        )  # fmt: skip
        return Candidate(
            num_microbatches=num_groups * rounds, graph=mixed(decode, self._prefill, tokens),
            profile=dataclasses.replace(profile, kinds=tuple(rows)),
        )

    def _job(self, **own: Any) -> Job:
        try:
            return Job(**{
                **self._words, "mode": "infer", "cache_tokens": self._requests.context_tokens,
                "cache_sequences": self._requests.concurrency, **own,
            })  # fmt: skip
        except (TypeError, ValueError) as error:
            raise UsageError(f"{error}; see `autopart plan --help`") from error

    def _planned(self, candidate: Candidate, others: tuple[Candidate, ...], job: Job) -> Plan:
        found = planning.plan((candidate, *others), self._cluster, job, progress=self._progress)
        return dataclasses.replace(
            found, model=dataclasses.replace(found.model, tracer=candidate.graph.tracer)
        )

    def _given(self, plan: Plan, num_groups: int) -> Generation:
        """What a plan gives with so many groups: a round takes as long as the busiest stage is busy with all groups,
        and no less than one group takes through all stages.
        """
        requests = self._requests
        size = requests.concurrency // num_groups
        decode = self._phases.decode(size)
        prefills = self._stage_seconds(plan, self._prefill, self._prefill_profile)
        decodes = self._stage_seconds(plan, decode, _estimated(decode, self._cluster))
        tokens = requests.new_tokens
        busy = [((tokens - 1) * each + size * prompt) / tokens for each, prompt in zip(decodes, prefills, strict=True)]
        seconds = max(num_groups * max(busy), sum(busy))
        return Generation(
            requests=requests, num_groups=num_groups, tokens_per_second=requests.concurrency / seconds,
            time_to_first_token_seconds=sum(prefills), time_per_output_token_seconds=seconds,
            stages=tuple(
                GenerationStage(prefill_seconds=prompt, decode_seconds=each, cache_bytes=stage.memory.kv_cache)
                for prompt, each, stage in zip(prefills, decodes, plan.stages, strict=True)
            ),
        )  # fmt: skip

    def _stage_seconds(self, plan: Plan, graph: Graph, profile: Profile) -> list[float]:
        """Of every stage, its layers' time and that of what comes in."""
        found, first, before = [], 0, None
        for stage in plan.stages:
            device, last = plan.cluster.device(stage.devices[0]), first + len(stage.layers)
            seconds = sum(profile.kind(device.kind).forward_seconds[first:last]) / device.speed
            if before is not None and before != device:
                link = plan.cluster.link(before, device)
                seconds += sum(link.seconds(value.bytes) for value in graph.crossing(first))
            found.append(seconds)
            first, before = last, device
        return found


def group_counts(concurrency: int, num_devices: int) -> tuple[int, ...]:
    """Into how many groups the requests may go: all in one, and what divides them up to a group per device.

    With as many groups as stages every stage is always busy; more groups would only read the weights more often.
    """
    divisors = [count for count in range(1, concurrency + 1) if concurrency % count == 0]
    enough = next((count for count in divisors if count >= num_devices), concurrency)
    between = [count for count in divisors if 1 < count <= enough]
    return (1, *between[-3:])


def _estimated(graph: Graph, cluster: Cluster) -> Profile:
    """By data sheets, on every kind of the cluster.

    Raises:
        DeviceError: a kind is not in the catalogue.
    """
    rows: list[KindProfile] = []
    for name in dict.fromkeys(device.kind for device in cluster.devices):
        known = profiling.kind_in(cluster, name)
        if known is None:
            raise DeviceError(
                f"generation is estimated from data sheets, and {name} is in no catalogue; plan for a kind that is "
                "(autopart devices), or describe one in --cluster"
            )
        rows.append(profiling.estimate(graph, known, training=False, optimizer="none"))
    return Profile(fingerprint=graph.fingerprint, training=False, batch_size=graph.batch_size, kinds=tuple(rows))


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
