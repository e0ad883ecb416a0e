"""gating: does a persona gate a behaviour?

Reading results needs no model: `open_run`, `open_runs`, `refusal_rate`, `rates`, `contrast`, and the
module `agreement` for the labels of other judges.
"""

from gating.analysis import agreement, contrast, rates, refusal_rate
from gating.errors import GatingError
from gating.store import open_run
from gating.store.joins import open_runs

__all__ = ["GatingError", "agreement", "contrast", "open_run", "open_runs", "rates", "refusal_rate"]
__version__ = "0.1.0"
