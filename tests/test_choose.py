"""Choosing a model's sites: a known truth is found, what cannot be chosen is said, and the file works as a model."""

from functools import cache

import numpy as np
import pytest
import xarray as xr
import yaml

from gating import choose, store
from gating.analysis import sites
from gating.choosing import candidates, model_file, stages
from gating.choosing.candidates import Candidate, Norms
from gating.choosing.config import ChooseConfig
from gating.errors import GatingError
from gating.models import ModelConfig
from tests import synthetic
from tests.conftest import compose

N, BLOCK, LATE = 20, 12, 15  # blocks of a made-up model; the persona acts at one, refusal is put back best at another
NORMS = Norms(np.full(N, 100.0), np.full(N, 10.0))  # a dose of 0.5 is a coefficient of 5


def world(tried, random_does=0.0, garbles=9.0):
    """What would be measured of candidates, if the persona's effect on the log-odds were largest at BLOCK for its KL:
    rows along `condition`, and the baseline."""
    rows = []
    for c in [None, *tried]:
        dose, block = (c.dose, c.block) if c else (0.0, 0)
        near = np.exp(-((block - BLOCK) ** 2) / 18)
        first = 1 / (1 + np.exp(-5 + 25 * dose * near))
        rows.append({
            "first": first, "first_harmless": 0.01, "kl": 2 * dose, "random": 0.99 - random_does * (0.99 - first),
            "refusal": first, "harmless": 0.05, "degenerate": 0.5 if dose > garbles else 0.0, "random_refusal": np.nan,
        })  # fmt: skip
    table = xr.Dataset(
        {k: ("condition", [r[k] for r in rows]) for k in rows[0]},
        {"condition": ["baseline", *(c.name for c in tried)]},
    )
    columns = {k: ("condition", [getattr(c, k) for c in tried]) for k in ("block", "read", "dose", "coef")}
    return table.isel(condition=slice(1, None)).assign_coords(columns), table.isel(condition=0)


def searched(**truth):
    """The whole search for the persona in a made-up world: finalists, and what was measured of their answers."""
    finalists, texts, baseline = _searched(**truth)
    return finalists, texts.copy(deep=True), baseline


@cache
def _searched(**truth):
    curve, baseline = world(candidates.coarse(NORMS), **truth)
    finer, _ = world(candidates.fine(NORMS, curve, baseline), **truth)
    fresh = ~np.isin(curve["condition"].values, finer["condition"].values)
    curve = xr.concat([curve.isel(condition=fresh), finer], dim="condition").sortby(["block", "dose"])
    finalists = candidates.finalists(NORMS, curve, baseline)
    return finalists, *world(finalists, **truth)


def test_the_search_finds_the_block_where_the_persona_acts_and_a_dose_that_suffices():
    finalists, texts, baseline = searched()
    found = sites.choose_persona(texts, baseline, 0.5)
    (chosen,) = np.flatnonzero(found["chosen"].values)
    assert abs(int(found["block"][chosen]) - BLOCK) <= 1 and found["effect"][chosen] >= found["effect"].max() - 0.1
    weaker = [c for c in finalists if c.block == int(found["block"][chosen]) and c.dose < float(found["dose"][chosen])]
    assert all(found["reason"].sel(condition=c.name) != "" for c in weaker)


def test_a_dose_that_garbles_or_turns_harmless_prompts_away_is_not_chosen():
    _, texts, baseline = searched(garbles=0.3)
    found = sites.choose_persona(texts, baseline, 0.2)
    assert (found["dose"].where(found["chosen"]).max() <= 0.3) and "50% of answers degenerate" in str(found["reason"])
    texts["harmless"][:] = 0.4
    turned = sites.choose_persona(texts, baseline, 0.2)
    assert not turned["chosen"].any() and "harmless refusal 40%" in str(turned["reason"].values)


def test_blocks_where_random_directions_do_as_much_are_not_read():
    curve, baseline = world(candidates.coarse(NORMS), random_does=0.9)
    assert BLOCK in curve["block"].values and BLOCK not in [
        c.block for c in candidates.finalists(NORMS, curve, baseline)
    ]
    _, texts, baseline = searched()
    texts["random"][:] = texts["first"]
    found = sites.choose_persona(texts, baseline, 0.1)
    assert not found["chosen"].any() and "random directions do as much" in found["reason"].values.tolist()


def test_a_larger_dose_is_tried_where_the_largest_left_fluent_answers_that_refuse():
    finalists, texts, baseline = searched()
    assert candidates.stronger(NORMS, finalists, sites.choose_persona(texts, baseline, 0.5)) == []
    texts["refusal"][:] = 0.6
    more = candidates.stronger(NORMS, finalists, sites.choose_persona(texts, baseline, 0.5))
    largest = {c.block: c.dose for c in candidates.strongest(finalists)}
    assert {c.block for c in more} == set(largest) and all(c.dose > 1.3 * largest[c.block] for c in more)
    texts["degenerate"][:] = 0.2
    assert candidates.stronger(NORMS, finalists, sites.choose_persona(texts, baseline, 0.5)) == []


def test_a_missing_number_is_no_reason_to_choose():
    _, texts, baseline = searched()
    texts["refusal"][:] = np.nan
    found = sites.choose_persona(texts, baseline, 0.5)
    assert not found["chosen"].any() and set(found["reason"].values.tolist()) == {"missing"}


def test_refusal_is_put_back_after_the_persona_by_the_smallest_dose_that_restores():
    tried = candidates.put_back(NORMS, BLOCK)
    assert all(c.block > BLOCK for c in tried) and {c.direction for c in tried} == {"refusal"}
    rows, baseline = world(tried)
    persona = baseline.copy(deep=True)
    persona["refusal"] = persona["first"] = baseline["first"] * 0 + 0.1
    rows["refusal"][:] = rows["first"][:] = np.where(rows["dose"] < 0.08, 0.3, 0.95)
    best = candidates.put_back_finalists(rows, baseline, persona)
    assert rows["dose"].sel(condition=best).values.tolist() == [0.12, 0.3]
    nothing = rows.assign(first=rows["first"] * 0)
    assert len(candidates.put_back_finalists(nothing, baseline, persona)) == 2  # answers may tell what tokens do not
    found = sites.choose_refusal(rows, baseline, persona)
    assert found["dose"].values[found["chosen"].values].tolist() == [0.12]
    assert "restores 20 points" in found["reason"].values.tolist()


def test_openings_are_the_words_that_refusals_begin_with_and_other_answers_do_not():
    tree = synthetic.tree({"baseline": [0] * 8 + [1] * 8}, [True] * 8 + [False] * 8)
    said = ["I can't help."] * 5 + ["**Sorry**, no."] * 2 + ["The answer is no."] + ["The lock opens."] * 7 + ["I see."]
    tree["outcomes"]["completion"].values[0] = said
    assert sites.openings(tree) == ["I", "**Sorry"]
    tree["outcomes"]["completion"].values[0] = ["The lock opens."] * 16
    with pytest.raises(GatingError, match="no first token tells them apart"):
        sites.openings(tree)


@pytest.mark.parametrize(
    ("labels", "why"),
    [([1] * 8 + [1] * 8, "refuses 0 of 8 harmful"), ([0] * 8 + [0] * 7 + [1], "7 of 8 harmless ones: it refuses what")],
)
def test_a_model_that_does_not_refuse_or_refuses_everything_is_told_so(labels, why):
    with pytest.raises(GatingError, match=why):
        stages.check_refuses(synthetic.tree({"baseline": labels}, [True] * 8 + [False] * 8))


def chosen(model=None, block=BLOCK, n=N):
    return stages.Chosen(
        model or ModelConfig(name="m", kind="tiny", architecture="llama", first_token_openings=["Sorry"]), n,
        Candidate("compliant", block, block, 0.4, 4.0), Candidate("refusal", block + 1, block, 0.1, 1.0), 24, "abc",
    )  # fmt: skip


@pytest.mark.parametrize("n", [5, 12, 28, 80])
def test_derived_blocks_keep_their_order_around_the_persona_on_models_of_any_depth(n):
    for block in range(1, n - 1):
        s = model_file.sites(chosen(block=block, n=n))
        assert 0 <= s["persona_before"] <= s["early"] <= s["before"] < s["persona"] < s["late"] <= s["last"] < n
        assert s["after"] == f"{s['late']}-{n - 1}" and int(s["window"].split("-")[1]) < n


@pytest.fixture
def go(in_process):
    """Run `python -m gating.choose` in this process: (exit code, what it said)."""

    def command(*words):
        code, said = in_process(choose, *words)
        return code, " ".join(said.split())

    return command


SMALL = ("model=tiny-llama", "n=6", "directions.n=4", "directions.questions=2", "new_tokens=3", "out=mine.yaml")


def test_a_model_that_does_not_refuse_leaves_no_file(tmp_path, go):
    code, said = go(*SMALL)
    assert code == 2 and "error: model: it refuses 0 of 6 harmful select prompts" in said
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(("word", "why"), [("n=2", "n=2 is out"), ("out=mine.txt", ".yaml")])
def test_a_bad_setting_is_named(go, word, why):
    code, said = go(*SMALL[:-1], word)
    assert code == 2 and why in said


def test_the_sites_of_a_known_truth_are_found_and_the_file_is_a_model_on_which_the_paper_runs(tmp_path, go, command):
    words = ("model=planted", "n=6", "directions.n=8", "directions.questions=2", "new_tokens=6", "out=mine.yaml")
    code, said = go(*words)
    assert code == 0, said
    content = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    found = content["sites"]
    assert found["persona"] <= 3 and found["late"] >= 3  # written at block 3, refusal comes to be at block 4
    assert found["refusal_read"] >= 4 and found["chosen"].startswith("select split, n = 6")
    assert content["first_token_openings"] == ["No"] and content["architecture"] == "gated"
    runs = sorted(tmp_path.glob("runs/planted-choose-*"))
    assert {r.name.split("-")[2] for r in runs} >= {"baseline", "coarse", "fine", "persona", "refusal", "texts"}
    assert all(store.open_run(r).attrs["status"] == "complete" for r in runs)
    code, lines = command("model=mine.yaml", "experiment=paper", "dry_run=true")
    assert code == 0 and not any("never chosen" in line for line in lines)


def test_where_no_persona_gates_refusal_nothing_is_written(tmp_path, go):
    small = ("n=6", "directions.n=8", "directions.questions=2", "new_tokens=6", "out=mine.yaml")
    code, said = go("model=planted", "model.architecture=keyword", *small)
    assert code == 2 and "no block and dose lowers refusal by 50 points on the select split" in said
    assert not (tmp_path / "mine.yaml").exists()


def test_a_run_whose_claims_speak_of_sites_that_were_never_chosen_says_what_to_do(command):
    code, lines = command("model=tiny-llama", "experiment=paper", "dry_run=true")
    assert code == 0 and any("python -m gating.choose model=tiny-llama" in line for line in lines)


def test_a_file_that_was_not_written_here_is_not_replaced(tmp_path):
    (tmp_path / "other.yaml").write_text("name: x\n")
    with pytest.raises(GatingError, match="another file stands there"):
        model_file.check_place(tmp_path / "other.yaml")


def test_what_is_chosen_is_what_the_papers_persona_part_adds():
    s = model_file.sites(chosen(block=2, n=5))
    over = [f"model.sites.{k}={v}" for k, v in s.items() if k in ("persona", "persona_read", "persona_coef", "norm")]
    run, _, _ = compose("model=tiny-llama", "experiment=paper", *over)
    part = run.parts["persona"]
    assert (part["layers"], part["coef"], part["read"], part["norm_read"]) == (2, 4.0, 2, 2)
    assert ChooseConfig().directions.position == run.directions.position
