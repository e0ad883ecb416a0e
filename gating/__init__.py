"""gating: does a persona gate a behaviour?

Reading results needs no model: `open_run`, `open_runs`, `refusal_rate`, `rates`, `contrast`, and the
module `agreement` for the labels of other judges. `run`, `study`, `directions` and `capture` (gating/door.py) run
models; what they need is imported when they are called.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gating.analysis import agreement, contrast, rates, refusal_rate
from gating.errors import GatingError
from gating.store import open_run
from gating.store.joins import open_runs

if TYPE_CHECKING:
    from gating.door import capture, directions, study

__all__ = [
    "GatingError",
    "agreement",
    "capture",
    "contrast",
    "directions",
    "open_run",
    "open_runs",
    "rates",
    "refusal_rate",
    "run",
    "study",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "run":  # the module of the command, which can be called
        return import_module("gating.run")
    if name in ("capture", "directions", "study"):
        return getattr(import_module("gating.door"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
