"""A run's page: one self-contained HTML file with its tables, pictures and openings of answers.

Prompts and answers are shown as short openings, harmful ones cut to a few words, unless full text is asked for.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import jinja2
import numpy as np
import xarray as xr
from markupsafe import Markup

from gating import analysis, swap
from gating.analysis import claims
from gating.analysis.claims import Family
from gating.errors import naming
from gating.figures import gallery
from gating.judging.labels import LABELS
from gating.reporting import again, drawings, effects, person
from gating.reporting.drawings import Drawing
from gating.reporting.headline import headline
from gating.reporting.rows import Row, Verdict, folded, headline_set, own_claims, registered, rows, verdict_rows

PROMPT_WORDS, HARMLESS_WORDS, HARMFUL_WORDS = 6, 12, 4
SAMPLES = 12  # prompts
NAME = "report.html"


class DecidedFamily(NamedTuple):
    """A family of claims with what the run says on them."""

    family: Family
    post_hoc: bool  # named after the run
    decided: xr.Dataset
    rows: list[Verdict]
    registered: str  # which claims and which code, in words


class OutcomesTable(NamedTuple):
    harmful: bool
    rows: list[Row]  # many random controls of a place as a single row
    rest: list[Row]  # and those again one by one


class Sample(TypedDict):
    """The opening of an answer."""

    prompt: str
    hash: str
    category: str
    condition: str
    label: str
    answer: str


def write(
    run: xr.DataTree,
    folder: str | Path,
    full_text: bool = False,
    post_hoc: Family | None = None,
    pictures: Sequence[str] = (),
) -> Path:
    """Write report.html, its pictures and the verdicts (claims.json, claims_post_hoc.json) into `folder`; the page's
    path. post_hoc: a further family of claims, marked as named after the run. pictures: which, by name (or `all`);
    none are those that the run's experiment is for. Raises GatingError for one that it does not have."""
    folder = Path(folder)
    families = decided_families(run, post_hoc)
    path = folder / NAME
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for each in families:
            name = "claims_post_hoc.json" if each.post_hoc else "claims.json"
            swap.write(folder / name, claims.to_json(each.decided) + "\n")
        swap.write(path, _rendered(run, families, drawings.draw(run, folder, pictures), full_text, folder.name))
    return path


def stands(folder: Path, full_text: bool) -> bool:
    """Whether a page is there already that shows whole texts, or does not, as asked."""
    path = folder / NAME
    return path.exists() and _marked(full_text) in path.read_text(errors="replace")


def _marked(full_text: bool) -> str:
    return f'<body data-full-text="{json.dumps(full_text)}">'


def _rendered(
    run: xr.DataTree, families: Sequence[DecidedFamily], pictures: Sequence[Drawing], full_text: bool, name: str
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gating.reporting"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    harmful, done = headline_set(run), analysis.read_group(run, "outcomes")["done"]
    sets = [harmful, *([False] if analysis.asked_both(run) else [])]
    return environment.get_template("report.html.j2").render(
        attrs=run.attrs,
        headline=headline(run),
        readings=person.readings(run) if person.held(run) else [],
        reading_columns=person.COLUMNS,
        read_claims=person.claim_lines(run) if person.held(run) else [],
        read_claims_columns=person.CLAIM_COLUMNS,
        read_claims_caption=person.VERDICTS,
        outcomes=[_outcomes(run, prompts) for prompts in sets],
        mediations=effects.mediations(run),
        undefined=effects.UNDEFINED,
        topics={topic: list(of_topic) for topic, of_topic in itertools.groupby(pictures, lambda p: p["topic"])},
        more=[n for n in gallery.drawable(run) if n not in {p["name"] for p in pictures}],
        folder=name,
        again=again.command(run),
        samples=samples(run, full_text),
        shown=[analysis.shown_names(run)[name] for name in quoted(run)],
        full_text=full_text,
        body=Markup(_marked(full_text)),
        warnings=json.loads(run.attrs.get("warnings", "[]")),
        versions=json.loads(run.attrs.get("versions", "{}")),
        done=int(done.sum()),
        total=done.size,
        claims=families,
        finished=run.attrs.get("status") == "complete",
    )


def decided_families(run: xr.DataTree, post_hoc: Family | None) -> list[DecidedFamily]:
    """The run's own claims and those named after it, each family evaluated by itself. The run's own always stand, so
    that a family chosen later cannot take the place of what was written down before."""
    out = []
    for family, later in ((own_claims(run), False), (post_hoc, True)):
        if family:
            decided = claims.evaluate(run, family)
            decided.attrs["post_hoc"] = later
            out.append(DecidedFamily(family, later, decided, verdict_rows(decided, family), registered(decided)))
    return out


def _outcomes(run: xr.DataTree, harmful: bool) -> OutcomesTable:
    lines = rows(run, harmful, 1)
    shown = folded(lines)
    kept = {r["name"] for r in shown}
    return OutcomesTable(harmful, shown, [r for r in lines if r["name"] not in kept])


def quoted(run: xr.DataTree) -> list[str]:
    """The conditions whose answers the page quotes: the baseline and the first conditions that are not controls."""
    return analysis.conditions_of_kind(run, ("baseline", "steered", "named"))[:4]


def samples(run: xr.DataTree, full_text: bool) -> list[Sample]:
    """Openings of answers: a few prompts under the baseline and the first conditions; harmful ones cut to a few
    words."""
    outcomes, prompts = analysis.read_group(run, "outcomes"), analysis.read_group(run, "prompts")
    names, shown = quoted(run), analysis.shown_names(run)
    out: list[Sample] = []
    for p in np.unique(np.linspace(0, prompts.sizes["prompt"] - 1, SAMPLES).astype(int)):
        prompt = prompts.isel(prompt=p)
        answer_words = HARMFUL_WORDS if bool(prompt["harmful"]) else HARMLESS_WORDS
        for name in names:
            answer = outcomes.sel(condition=name).isel(prompt=p)
            label = int(answer["label"])
            out.append({
                "prompt": opening(prompt["text"].item(), None if full_text else PROMPT_WORDS),
                "hash": str(prompt["prompt"].item()),
                "category": str(prompt["category"].item()),
                "condition": shown[name],
                "label": LABELS[label] if label >= 0 else "missing",
                "answer": opening(answer["completion"].item(), None if full_text else answer_words),
            })  # fmt: skip
    return out


def opening(text: str, words: int | None) -> str:
    """The first words of a text, `…` where more follows; None is all of it."""
    parts = text.split()
    return text if words is None or len(parts) <= words else " ".join(parts[:words]) + " …"
