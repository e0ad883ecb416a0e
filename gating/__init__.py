"""gating: does a persona gate a behaviour?

Reading results needs no model: `open_run`, `open_runs`, `refusal_rate`, `rates`, `contrast`, `harm_scores`, and the
module `agreement` for the labels of other judges. `run`, `study`, `directions` and `capture` (gating/door.py) run
models. Each is imported when it is first used, so that a command that needs none of them starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gating.errors import GatingError

if TYPE_CHECKING:
    from gating import run
    from gating.analysis import agreement, contrast, harm_scores, rates, refusal_rate
    from gating.door import capture, directions, study
    from gating.store import open_run
    from gating.store.joins import open_runs

__all__ = [
    "GatingError",
    "agreement",
    "capture",
    "contrast",
    "directions",
    "harm_scores",
    "open_run",
    "open_runs",
    "rates",
    "refusal_rate",
    "run",
    "study",
]
__version__ = "0.1.0"

if not TYPE_CHECKING:
    _MODULES = {"agreement": "gating.analysis.agreement", "run": "gating.run"}  # `run` is the command, and callable
    _HOMES = {"open_run": "gating.store", "open_runs": "gating.store.joins"} | dict.fromkeys(
        ("capture", "directions", "study"), "gating.door"
    )

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in _MODULES:
            return import_module(_MODULES[name])
        return getattr(import_module(_HOMES.get(name, "gating.analysis")), name)
