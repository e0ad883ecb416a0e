"""Settings: every number has a range, and no key is ignored."""

import types
import typing
from dataclasses import is_dataclass

import pytest

from gating import settings
from gating.choosing.config import ChooseConfig
from gating.errors import GatingError
from gating.pipeline.config import RunConfig
from gating.training.config import TrainConfig
from tests.conftest import compose


def numeric(schema, prefix=""):
    """The keys of a schema's numbers."""
    for name, hint in typing.get_type_hints(schema).items():
        kinds = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
        if kinds & {int, float}:
            yield prefix + name
        for kind in kinds:
            if is_dataclass(kind):
                yield from numeric(kind, f"{prefix}{name}.")


@pytest.mark.parametrize(
    ("schema", "ranges"),
    [(RunConfig, settings.RANGES), (TrainConfig, settings.TRAINING), (ChooseConfig, settings.CHOOSING)],
)
def test_every_numeric_setting_has_a_range_and_every_range_a_setting(schema, ranges):
    assert {k for k in numeric(schema) if not k.startswith("label_rule.")} == set(ranges)


def test_a_range_refuses_what_lies_outside_and_what_is_no_number():
    assert settings.Range(0, 1).holds(0) and not settings.Range(0, 1, above=True).holds(0)
    for value in (float("nan"), float("inf"), 1e39, "3", True, None, [1]):
        with pytest.raises(GatingError, match=r"steer\.coef.*finite number"):
            settings.check_number(value, "steer.coef")


@pytest.mark.parametrize(
    ("word", "near"),
    [("+steer.coeff=8", "steer.coef"), ("+max_tokens=3", "max_new_tokens"), ("+model.sites.perona=2", "persona")],
)
def test_a_key_that_was_added_and_that_nothing_reads_is_refused_with_the_nearest_name(word, near):
    with pytest.raises(GatingError, match=f"is not a setting: .*did you mean [a-z_.]*{near}"):
        compose(word)
