"""Plans of the steady state of generating text: candidates of the phases for every number of groups of requests."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

from autopart import planning, profiling
from autopart.advising import Case
from autopart.errors import DeviceError, InfeasibleError, UsageError
from autopart.generating.phases import Phases, mixed
from autopart.progress import Progress
from autopart.schema.device import Cluster
from autopart.schema.generation import Generation, GenerationStage, Requests
from autopart.schema.graph import Graph
from autopart.schema.job import Job
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from autopart.schema.profile import KindProfile, Profile

__all__ = ["Maker", "group_counts"]

MOST_ROUNDS = 64
"""tokens of every request in a step of the plan: by then what filling the pipeline takes is little"""


class Maker:
    """Makes candidates of the phases, has them planned, and reads off what they give."""

    def __init__(
        self, phases: Phases, requests: Requests, cluster: Cluster, words: dict[str, Any], progress: Progress
    ) -> None:
        self._phases, self._requests, self._cluster = phases, requests, cluster
        self._words, self._progress = words, progress
        self._prefill = phases.prefill()
        self._prefill_profile = _estimated(self._prefill, cluster)
        self._decode = functools.cache(self._decoded)

    @property
    def requests(self) -> Requests:
        """What is served."""
        return self._requests

    def of(self, requests: Requests) -> Maker:
        """The same for other requests, in any number of groups."""
        words = {name: word for name, word in self._words.items() if name != "microbatches"}
        return Maker(self._phases.of(requests), requests, self._cluster, words, self._progress)

    def cases(self) -> tuple[Case, ...]:
        """What a plan is chosen among: for every number of groups its candidates and job."""
        if self._words.get("objective") == "latency":
            return (self._first_tokens(),)
        return tuple(map(self._case, self._counts()))

    def together(self) -> Case:
        """The case in which all requests are one group."""
        return self._case(1)

    def _decoded(self, num_requests: int) -> tuple[Graph, Profile]:
        """A token of each of so many requests, with its times."""
        graph = self._phases.decode(num_requests)
        return graph, _estimated(graph, self._cluster)

    def _counts(self) -> tuple[int, ...]:
        wanted = self._words.get("microbatches")
        if wanted and self._requests.concurrency % wanted:
            raise UsageError(
                f"{self._requests.concurrency} requests do not divide into {wanted} groups; give another --microbatches"
            )
        return (wanted,) if wanted else group_counts(self._requests.concurrency, len(self._cluster.devices))

    def most(self) -> Plan:
        """The plan with most tokens per second, among all numbers of groups."""
        found, failed = [], None
        for count in self._counts():
            try:
                plan = self._unhindered(self._case(count), count)
            except InfeasibleError as error:
                failed = failed or error
            else:
                found.append(dataclasses.replace(plan, generation=self._given(plan, count)))
        if not found:
            raise failed or InfeasibleError("no plan was found; give another --concurrency")
        return max(found, key=lambda plan: (cast(Generation, plan.generation).tokens_per_second, -len(plan.stages)))

    def soonest(self) -> Plan:
        """The plan with the shortest time to the first token."""
        plan = self._planned(self._first_tokens())
        counts = group_counts(self._requests.concurrency, len(plan.stages))
        given = (self._given(plan, count) for count in counts)
        return dataclasses.replace(plan, generation=max(given, key=lambda each: each.tokens_per_second))

    def _unhindered(self, case: Case, count: int) -> Plan:
        """The best plan with no more stages than groups: with more some would wait for a request's last token."""
        plan = self._planned(case)
        if 1 < count < len(plan.stages) and not self._words.get("microbatches"):
            fewer = self._planned(dataclasses.replace(case, job=dataclasses.replace(case.job, stages=count)))
            return dataclasses.replace(fewer, job=case.job)
        return plan

    def _first_tokens(self) -> Case:
        """One prompt, with the memory of all requests."""
        decode, _ = self._decode(self._requests.concurrency)
        graph = dataclasses.replace(mixed(self._prefill, decode, 1), values=self._prefill.values)
        candidate = Candidate(num_microbatches=1, graph=graph, profile=self._prefill_profile)
        return Case(candidates=(candidate,), job=self._job(batch=1, microbatches=1, objective="latency"))

    def _case(self, num_groups: int) -> Case:
        """So many groups of requests, which follow one another through the stages."""
        concurrency = self._requests.concurrency
        rounds = min(self._requests.new_tokens, MOST_ROUNDS) if num_groups > 1 else 1
        candidate = self._candidate(num_groups, rounds)
        whole = () if num_groups == 1 else (self._candidate(1, rounds),)
        job = self._job(batch=concurrency * rounds, microbatches=candidate.num_microbatches, rounds=rounds)
        return Case(candidates=(candidate, *whole), job=job)

    def _candidate(self, num_groups: int, rounds: int) -> Candidate:
        """Rounds of decode with their share of the prefills."""
        decode, profile = self._decode(self._requests.concurrency // num_groups)
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

    def _planned(self, case: Case) -> Plan:
        found = planning.plan(case.candidates, self._cluster, case.job, progress=self._progress)
        return dataclasses.replace(
            found, model=dataclasses.replace(found.model, tracer=case.candidates[0].graph.tracer)
        )

    def _given(self, plan: Plan, num_groups: int) -> Generation:
        """What a plan gives with so many groups: a round takes as long as the busiest stage is busy with all groups,
        and no less than one group takes through all stages.
        """
        requests = self._requests
        size = requests.concurrency // num_groups
        decode, profile = self._decode(size)
        prefills = self._stage_seconds(plan, self._prefill, self._prefill_profile)
        decodes = self._stage_seconds(plan, decode, profile)
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
