"""Rates and contrasts: pure functions from a run's tree to labelled Datasets. No model, no zarr.

Everything counts prompts that are `done` and have a label; what is missing is left out and shows in `n`. Dimensions
other than prompt (condition, and a joined multirun's axes) are kept.
"""

from gating.analysis.contrasts import against_random, contrast, controlled, draws, random_null
from gating.analysis.corrected_claims import corrected_claims
from gating.analysis.corrected_rates import corrected_contrast, corrected_rate, judge_errors, reader_of
from gating.analysis.direction_variants import effect_over_directions, stability
from gating.analysis.harm import harm_scores
from gating.analysis.interchange import Route, routes
from gating.analysis.judges import judges_of, labels_of, readers_of, with_judge
from gating.analysis.label_rates import rates, refusal_rate
from gating.analysis.mediation import by_block, mediation
from gating.analysis.reading import (
    asked,
    asked_both,
    conditions_of_kind,
    harm_judges,
    held_readouts,
    read_group,
    shown_names,
    strengths,
    undisturbed,
    whole_directions,
    written_blocks,
)
from gating.analysis.samples import sampled_rates
from gating.analysis.stops import early_stops

__all__ = [
    "Route",
    "against_random",
    "asked",
    "asked_both",
    "by_block",
    "conditions_of_kind",
    "contrast",
    "controlled",
    "corrected_claims",
    "corrected_contrast",
    "corrected_rate",
    "draws",
    "early_stops",
    "effect_over_directions",
    "harm_judges",
    "harm_scores",
    "held_readouts",
    "judge_errors",
    "judges_of",
    "labels_of",
    "mediation",
    "random_null",
    "rates",
    "read_group",
    "reader_of",
    "readers_of",
    "refusal_rate",
    "routes",
    "sampled_rates",
    "shown_names",
    "stability",
    "strengths",
    "undisturbed",
    "whole_directions",
    "with_judge",
    "written_blocks",
]
