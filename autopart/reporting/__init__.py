"""Plans, measurements and models as text and as Chrome traces.  Everything here turns data on paper into words."""

from autopart.reporting.chrome import chrome_trace
from autopart.reporting.devices import devices_text, kind_text
from autopart.reporting.explanations import explanation_text
from autopart.reporting.graphs import profile_text, trace_report, trace_text
from autopart.reporting.measurements import measurement_text
from autopart.reporting.plans import plan_text
from autopart.reporting.tables import layer_range
from autopart.reporting.verifications import verification_text
from autopart.reporting.workloads import workload_text

__all__ = [
    "chrome_trace",
    "devices_text",
    "explanation_text",
    "kind_text",
    "layer_range",
    "measurement_text",
    "plan_text",
    "profile_text",
    "trace_report",
    "trace_text",
    "verification_text",
    "workload_text",
]
