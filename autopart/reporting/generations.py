"""What a plan gives where text is generated."""

from __future__ import annotations

from autopart.reporting.tables import facts, table
from autopart.schema.plan import Plan
from autopart.units import format_bytes, format_count, format_seconds

__all__ = ["generation_rows", "generation_text"]


def generation_text(plan: Plan) -> str:
    """Tokens per second, the times of a request, and what each stage does for it; empty if no text is generated."""
    given = plan.generation
    if given is None:
        return ""
    stages = [
        (str(index), format_seconds(each.prefill_seconds), format_seconds(each.decode_seconds),
         format_bytes(each.cache_bytes))
        for index, each in enumerate(given.stages)
    ]  # fmt: skip
    body = table(("stage", "prefill", "decode", "key-value cache"), stages)
    return f"{facts(generation_rows(plan))}\n\n{body}"


def generation_rows(plan: Plan) -> list[tuple[str, str]]:
    """Tokens per second and the times of a request, names with values; [] if no text is generated."""
    given = plan.generation
    if given is None:
        return []
    requests = given.requests
    groups = f"{given.num_groups} group{'s' if given.num_groups > 1 else ''}"
    return [
        ("requests", f"{requests.concurrency} at once in {groups}; {requests.prompt_tokens} tokens of prompt, "
         f"{requests.new_tokens} new; weights {requests.weights}"),
        ("throughput", f"{format_count(given.tokens_per_second)} new tokens/s in all"
         if given.tokens_per_second >= 1000 else f"{given.tokens_per_second:.3g} new tokens/s in all"),
        ("first token", f"{format_seconds(given.time_to_first_token_seconds)} for a prompt that waits for nobody"),
        ("each token", f"{format_seconds(given.time_per_output_token_seconds)} of one request, prefills of others "
         "included"),
    ]  # fmt: skip
