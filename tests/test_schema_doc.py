"""docs/schema.md and docs/method.md say what the code holds."""

import importlib
import re
from pathlib import Path

import pytest

from gating.steering.readouts import document

ROOT = Path(__file__).parent.parent
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([a-z_]+)\.([A-Za-z_.]+)`", METHOD)))


def test_every_readout_stands_in_the_schema_with_its_dimensions_unit_and_meaning():
    text = (ROOT / "docs" / "schema.md").read_text(encoding="utf-8")
    assert not [row for row in document() if row not in text]


@pytest.mark.parametrize(("module", "function"), NAMED)
def test_every_function_that_the_method_names_exists(module, function):
    paths = (ROOT / "gating").glob(f"**/{module}.py")
    modules = [importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in paths]
    name, _, attribute = function.partition(".")
    held = [getattr(m, name) for m in modules if hasattr(m, name)]
    assert held and all(hasattr(h, attribute) for h in held if attribute)
