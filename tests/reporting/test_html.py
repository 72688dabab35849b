"""The HTML report: complete, escaped, small; in a real browser quiet, offline, and true to the plan's figures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from autopart import planning
from autopart.reporting import report_html
from autopart.reporting.drawing import MOST_BARS, PATH_WIDTH, by_stage, in_flight, memory_outline, timeline_rows
from autopart.schema.generation import Generation, GenerationStage, Requests
from autopart.schema.plan import Plan, Schedule
from autopart.schema.timeline import Timeline
from tests.paper import a_device, a_measurement, a_plan, a_stage, one_device_plan

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
EVIL = "</title><script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>\"'&"
LARGE_LAYERS, LARGE_STAGES = 126, 64


def a_large_plan() -> Plan:
    """126 layers on 64 devices, trained in 256 micro-batches."""
    plan = a_plan(training=True)
    names = [f"model.layers.{index}" for index in range(LARGE_LAYERS)]
    edges = [round(LARGE_LAYERS * at / LARGE_STAGES) for at in range(LARGE_STAGES + 1)]
    stages = tuple(
        replace(a_stage(at, f"h100:{at}", tuple(names[edges[at] : edges[at + 1]]), training=True),
                forward_seconds=1e-3 + 1e-5 * (at % 7), backward_seconds=2e-3)
        for at in range(LARGE_STAGES)
    )
    (transfer,) = plan.transfers
    return replace(
        plan, stages=stages, excluded=(), model=replace(plan.model, num_layers=LARGE_LAYERS),
        cluster=replace(plan.cluster, devices=tuple(a_device(f"h100:{at}") for at in range(LARGE_STAGES))),
        transfers=tuple(replace(transfer, from_stage=at, to_stage=at + 1) for at in range(LARGE_STAGES - 1)),
        schedule=Schedule(name="1f1b", num_microbatches=256, warmup=tuple(range(LARGE_STAGES, 0, -1))),
        job=replace(plan.job, batch=256),
    )


def consistent(plan: Plan) -> Plan:
    """The plan with the step time that its simulation gives."""
    seconds = planning.simulate(plan).step_seconds
    return replace(plan, prediction=replace(plan.prediction, step_seconds=seconds))


def html_of(plan: Plan) -> str:
    return report_html(plan, planning.simulate(plan), planning.explain(plan))


class Words(HTMLParser):
    """What a reader sees, and which elements there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def test_of_generated_text_the_first_figures_are_of_tokens() -> None:
    plan = a_plan()
    given = Generation(
        requests=Requests(prompt_tokens=8, new_tokens=4, concurrency=2), num_groups=2, tokens_per_second=270.0,
        time_to_first_token_seconds=0.117, time_per_output_token_seconds=0.0297,
        stages=tuple(GenerationStage(prefill_seconds=0.05, decode_seconds=0.01, cache_bytes=1) for _ in plan.stages),
    )
    text = html_of(replace(plan, generation=given))
    figures = dict(re.findall(r"<li><b>([^<]*)</b><span>([^<]*)</span>", text))
    assert (figures["270"], figures["29.7 ms"], figures["117 ms"]) == (
        "new tokens a second", "a token of each request", "to the first token"
    )
    assert "a step, predicted" not in text and "a step, predicted" in html_of(plan)


def test_everything_is_said() -> None:
    plan = a_plan()
    text = " ".join(Words(html_of(plan)).seen)
    for piece in (plan.verdict, plan.warnings[0].message, plan.warnings[0].suggestion, plan.excluded[0].reason,
                  "18.8 ms", "24.0 %", "threshold IP over layers", "even", "h.1 | h.2", "2.00 MB", "bottleneck",
                  *plan.origin.bases, *(check.detail for check in plan.checks)):
        assert piece in text, piece
    assert "Predicted and measured" not in text


def test_a_measurement_stands_beside() -> None:
    plan = a_plan(training=True)
    text = report_html(plan, planning.simulate(plan), planning.explain(plan), measurement=a_measurement(training=True),
                       replay=planning.simulate(plan))
    words = " ".join(Words(text).seen)
    assert "Stages as measured" in words and "2.00 ms / 2.10 ms" in words and a_measurement().verdict in words


def evil(plan: Plan) -> Plan:
    first = replace(plan.stages[0], layers=(EVIL, *plan.stages[0].layers[1:]))
    return replace(
        plan, verdict=EVIL, stages=(first, *plan.stages[1:]), model=replace(plan.model, name=EVIL),
        transfers=tuple(replace(each, tensor=EVIL) for each in plan.transfers),
        warnings=tuple(replace(each, message=EVIL, suggestion=EVIL) for each in plan.warnings),
        excluded=tuple(replace(each, reason=EVIL) for each in plan.excluded),
        cluster=replace(plan.cluster, devices=tuple(
            replace(each, kind=EVIL, node=EVIL, memory_origin=EVIL) for each in plan.cluster.devices
        )),
        origin=replace(plan.origin, bases=(EVIL,), links=(EVIL,)),
        checks=tuple(replace(each, detail=EVIL) for each in plan.checks),
        baselines=tuple(replace(each, description=EVIL, reason=EVIL) for each in plan.baselines),
        proof=replace(plan.proof, bound=EVIL, solver=EVIL),
    )


def test_what_a_stranger_writes_is_text() -> None:
    plain, strange = Words(html_of(a_plan())), Words(html_of(evil(a_plan())))
    assert [tag for tag, _ in plain.elements] == [tag for tag, _ in strange.elements]
    assert [sorted(attributes) for _, attributes in plain.elements] == [
        sorted(attributes) for _, attributes in strange.elements
    ]
    assert not {"script", "img"} & {tag for tag, _ in strange.elements}
    assert "".join(strange.seen).count("alert(1)") > 10  # it is there to be read


def test_nothing_is_fetched() -> None:
    text = html_of(a_plan())
    local = text.replace("url(#", "").replace('href="data:', "")
    assert not re.search(r"(?:src|href|url)\s*[=(]", local)
    assert "default-src 'none'" in text


def test_a_large_plan_is_small() -> None:
    plan = a_large_plan()
    timeline = planning.simulate(plan)
    assert len(timeline.events) > MOST_BARS
    text = report_html(plan, timeline, planning.explain(plan))
    assert len(text.encode()) < 2_000_000
    assert all(f"layers.{index}<" in text for index in range(LARGE_LAYERS))


def test_bars_add_up() -> None:
    plan = consistent(a_plan(training=True))
    timeline = planning.simulate(plan)
    for row, stage in zip(timeline_rows(timeline, timeline.step_seconds), plan.stages, strict=True):
        sums: dict[str, float] = defaultdict(float)
        for bar in row.bars:
            sums[bar.kind] += bar.width / 100 * timeline.step_seconds
        num = plan.schedule.num_microbatches
        assert sums["forward"] == pytest.approx(num * stage.forward_seconds, rel=1e-4)
        assert sums["backward"] == pytest.approx(num * stage.backward_seconds, rel=1e-4)
        assert sums["optimizer"] == pytest.approx(stage.optimizer_seconds, rel=1e-4)


def path_share(outline: str) -> float:
    """Covered share of a path of bars."""
    return sum(map(int, re.findall(r"h(\d+)", outline))) / PATH_WIDTH


def test_paths_add_up_too() -> None:
    plan = a_large_plan()
    timeline = planning.simulate(plan)
    rows = timeline_rows(timeline, timeline.step_seconds)
    for stage in (0, 31, 63):
        (path,) = (path for path in rows[stage].paths if path.kind == "backward")
        seconds = path_share(path.outline) * timeline.step_seconds
        assert seconds == pytest.approx(256 * plan.stages[stage].backward_seconds, rel=0.03)  # whole units


def test_memory_rises_with_every_forward_and_peaks_at_the_plans_peak() -> None:
    plan = replace(a_plan(training=True), schedule=Schedule(name="1f1b", num_microbatches=8, warmup=(2, 1)))
    timeline = planning.simulate(plan)
    changes = in_flight(by_stage(timeline)[0], training=True)
    assert max(number for _, number in changes) == 2 and changes[-1][1] == 0
    assert max(number for _, number in in_flight(by_stage(timeline)[0], training=False)) == 8
    small = replace(plan.stages[0], capacity_bytes=plan.stages[0].peak_bytes)
    outline = memory_outline(small, changes, timeline.step_seconds, timeline.step_seconds)
    heights = [float(each) for each in re.findall(r"V([\d.]+)", outline)]
    assert min(heights) == 0  # 100 is the floor, the cap is reached once and never passed
    assert heights[0] == pytest.approx(100 * small.memory.activations / small.peak_bytes, abs=0.1)


def test_no_peak_is_lost_in_columns() -> None:
    plan = a_large_plan()
    stage, changes = plan.stages[0], tuple((at / 1000, 1 + (at == 500)) for at in range(1000))
    outline = memory_outline(replace(stage, capacity_bytes=stage.peak_bytes), changes, 1.0, 1.0)
    assert outline.count("V") < 400 and "V0H" in outline


def test_one_device_and_an_empty_timeline_have_a_report() -> None:
    plan = one_device_plan()
    assert "1 micro-batch" in html_of(plan)
    empty = Timeline(num_stages=1, events=(), step_seconds=0.0)
    assert "One step" in report_html(plan, empty, planning.explain(plan))


MEASURE = """<script>
const sums = {};
for (const track of document.querySelectorAll(".timeline:not(.memory) svg.track")) {
  const width = track.getBoundingClientRect().width;
  for (const rect of track.querySelectorAll("rect")) {
    const key = track.dataset.stage + " " + rect.getAttribute("class");
    sums[key] = (sums[key] || 0) + rect.getBoundingClientRect().width / width;
  }
}
document.body.setAttribute("data-sums", JSON.stringify(sums));
document.body.setAttribute("data-overflow", document.documentElement.scrollWidth - innerWidth);
</script></body>"""


def browse(file: Path, *options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent / 'browser'}",
         "--disable-background-networking", "--disable-component-update", *options, file.as_uri()],
        capture_output=True, text=True, timeout=timeout, check=True,
    )


BROWSER_ITSELF = "not an origin"
"""what the log calls who asks for updates and the time"""


def requests_of(file: Path) -> tuple[set[str], str]:
    """The hosts that a page (not the browser for itself) asks, and what the browser wrote to its console."""
    log = file.with_suffix(".net.json")
    done = browse(file, "--enable-logging=stderr", "--v=0", f"--log-net-log={log}", "--dump-dom")
    starts = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    urls = [each["url"] for each in starts if "url" in each and each.get("initiator", BROWSER_ITSELF) != BROWSER_ITSELF]
    return {urlsplit(url).hostname or "" for url in urls if url.startswith(("http", "ws", "ftp"))}, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_a_browser_shows_it_without_error_or_request(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html_of(evil(a_plan(training=True))), encoding="utf-8")
    hosts, console = requests_of(file)
    assert "CONSOLE" not in console, console
    assert not hosts
    (leak := tmp_path / "leak.html").write_text("<script>missing()</script><img src=http://example.invalid/x>")
    hosts, console = requests_of(leak)  # the watch is not blind
    assert hosts == {"example.invalid"} and "CONSOLE" in console


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_the_drawn_bars_add_up_to_the_plans_figures(tmp_path: Path) -> None:
    plan = consistent(a_plan(training=True))
    text = html_of(plan)
    policy = re.search(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", text)
    assert policy is not None
    file = tmp_path / "report.html"
    file.write_text(text.replace(policy[0], "").replace("</body>", MEASURE), encoding="utf-8")
    dom = browse(file, "--window-size=1200,900", "--dump-dom").stdout
    body = next(dict(attributes) for tag, attributes in Words(dom).elements if tag == "body")
    sums = json.loads(body["data-sums"] or "")
    step, num = plan.prediction.step_seconds, plan.schedule.num_microbatches
    for stage in plan.stages:
        assert sums[f"{stage.index} forward"] * step == pytest.approx(num * stage.forward_seconds, rel=0.01)
        assert sums[f"{stage.index} backward"] * step == pytest.approx(num * stage.backward_seconds, rel=0.01)
    assert int(body["data-overflow"] or "1") <= 0
