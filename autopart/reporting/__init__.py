"""Plans, measurements and models as text, HTML and Chrome traces.  Everything here turns data on paper into words."""

from autopart.reporting.advice import advice_text
from autopart.reporting.alternatives import alternatives_text, layer_text, stage_text
from autopart.reporting.canvas import Picture, png, svg
from autopart.reporting.chrome import chrome_trace
from autopart.reporting.comparisons import comparison_csv, comparison_markdown, comparison_text
from autopart.reporting.devices import devices_text, devices_tsv, kind_text
from autopart.reporting.diagnoses import diagnosis_text
from autopart.reporting.explanations import explanation_text
from autopart.reporting.graphs import profile_text, trace_report, trace_text
from autopart.reporting.html import report_html
from autopart.reporting.measurements import measurement_text
from autopart.reporting.pastruns import past_runs_text
from autopart.reporting.pictures import comparison_picture, plan_picture
from autopart.reporting.plans import plan_text
from autopart.reporting.tables import layer_range
from autopart.reporting.top import top_text
from autopart.reporting.trainings import training_text
from autopart.reporting.verifications import verification_text
from autopart.reporting.workloads import workload_text

__all__ = [
    "Picture",
    "advice_text",
    "alternatives_text",
    "chrome_trace",
    "comparison_csv",
    "comparison_markdown",
    "comparison_picture",
    "comparison_text",
    "devices_text",
    "devices_tsv",
    "diagnosis_text",
    "explanation_text",
    "kind_text",
    "layer_range",
    "layer_text",
    "measurement_text",
    "past_runs_text",
    "plan_picture",
    "plan_text",
    "png",
    "profile_text",
    "report_html",
    "stage_text",
    "svg",
    "top_text",
    "trace_report",
    "trace_text",
    "training_text",
    "verification_text",
    "workload_text",
]
