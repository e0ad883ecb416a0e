"""gating: does a persona gate a behaviour?

Reading results needs no model: `open_run`, `open_runs`, `refusal_rate`, `rates`, `contrast`, `harm_scores`, and the
module `agreement` for the labels of other judges. Each is imported when it is first used, so that a command that needs
none of them starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gating.errors import GatingError

if TYPE_CHECKING:
    from gating.analysis import agreement, contrast, harm_scores, rates, refusal_rate
    from gating.store import open_run
    from gating.store.joins import open_runs

__all__ = ["GatingError", "agreement", "contrast", "harm_scores", "open_run", "open_runs", "rates", "refusal_rate"]
__version__ = "0.1.0"

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = {"open_run": "gating.store", "open_runs": "gating.store.joins"}.get(name, "gating.analysis")
        return import_module(f"{home}.{name}") if name == "agreement" else getattr(import_module(home), name)
