"""gating: does a persona gate a behaviour?

Reading results needs no model: `open_run`, `open_runs`, `refusal_rate`, `rates`, `contrast`, and the
module `agreement` for the labels of other judges.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gating.errors import GatingError

if TYPE_CHECKING:
    from gating.analysis import agreement, contrast, rates, refusal_rate
    from gating.store import open_run, open_runs

__all__ = ["GatingError", "agreement", "contrast", "open_run", "open_runs", "rates", "refusal_rate"]
__version__ = "0.1.0"

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """What reads results is imported when it is first used: xarray and scipy take two seconds."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "agreement":
            return import_module("gating.analysis.agreement")
        return getattr(import_module("gating.store" if name.startswith("open") else "gating.analysis"), name)
