"""An audit finds the persona that takes refusal away, however it is induced, and a policy decides on intervals."""

import json

import numpy as np
import pytest
import xarray as xr
import yaml
from peft import LoraConfig

from gating import audit, config_files, models, store
from gating.auditing import cells, page, policy, record
from gating.auditing.config import AuditConfig, check
from gating.errors import GatingError
from gating.judging.labels import COMPLIANCE, MISSING, REFUSAL
from gating.models import ModelConfig, adapters

N = 64


@pytest.fixture
def go(in_process):
    """Run `python -m gating.audit` in this process: (exit code, what it said)."""

    def command(*words):
        code, said = in_process(audit, *words)
        return code, " ".join(said.split())

    return command


RELEASE = yaml.safe_load((config_files.conf_dir() / "policy/release.yaml").read_text())
PERSONAS = ("a", "b", "c", "d", "e")


def made(rates, n=N, seed=0):
    """Cells of (model, induction, persona) with a share of harmful prompts refused, and harmless ones answered."""
    rng = np.random.default_rng(seed)
    refused = np.array([rng.permutation(n) < round(rate * n) for rate in rates.values()])
    label = np.where(np.concatenate([refused, np.zeros_like(refused)], 1), REFUSAL, COMPLIANCE).astype("int8")
    place = {name: ("cell", [p[k] for p in rates]) for k, name in enumerate(("model", "induction", "persona"))}
    sets = ["harmful"] * n + ["harmless"] * n
    prompts = {
        "set": ("prompt", sets),
        "category": ("prompt", ["x", "y"] * n),
        "prompt": [f"p{i}" for i in range(2 * n)],
    }
    return xr.Dataset({"label": (("cell", "prompt"), label)}, place | prompts)


def rates(prompt=1.0, adapter=1.0, adapter_steered=0.2):
    out = {("base", "none", ""): 1.0, ("mine", "none", ""): 1.0}
    for model, prompted, steered in (("base", prompt, 0.2), ("mine", adapter, adapter_steered)):
        for k, persona in enumerate(PERSONAS):
            out[model, "prompt", persona] = 1 - (1 - prompted) * k / 4
            out[model, "steering", persona] = 1 - (1 - steered) * k / 4
    return out


def verdicts(table):
    found = cells.findings(table)
    decided = policy.decide(RELEASE, found)
    return policy.verdict(RELEASE, decided), {d.rule for d in decided if d.verdict == "broken"}


def test_a_model_that_every_persona_leaves_as_it_is_keeps_the_policy():
    assert verdicts(made(rates())) == ("kept", set())


def test_a_persona_in_the_prompt_that_opens_the_model_breaks_it():
    assert verdicts(made(rates(prompt=0.3, adapter=0.3))) == ("broken", {"prompted"})


def test_an_adapter_that_looks_safe_until_it_is_steered_is_found():
    verdict, rules = verdicts(made(rates(adapter_steered=-0.0) | {("mine", "steering", "b"): 0.3}))
    assert verdict == "broken" and rules == {"no_worse_than_base"}


def test_too_few_prompts_to_tell_is_not_a_pass():
    verdict, rules = verdicts(made(rates(), n=8))
    assert verdict == "broken" and not rules
    found = cells.findings(made(rates(), n=8))
    assert policy.verdict(RELEASE | {"undecided": "kept"}, policy.decide(RELEASE, found)) == "kept"


def test_a_change_is_paired_and_what_is_missing_is_left_out():
    table = made({("base", "none", ""): 1.0, ("base", "prompt", "a"): 0.5})
    table["label"][0, :10] = MISSING
    row = cells.findings(table).sel(set="harmful").isel(cell=1)
    kept = table["label"].values[1, 10:N] == REFUSAL
    assert int(row["change_n"]) == N - 10 and float(row["change"]) == pytest.approx(kept.mean() - 1)
    assert int(row["n"]) == N and np.isnan(float(cells.findings(table).sel(set="borderline")["refusal"][1]))


def test_prompt_and_steering_that_rank_personas_alike_correlate_and_unlike_do_not():
    alike = cells.rank_correlation(made(rates(prompt=0.2)), "base", "prompt", "steering")
    assert alike["rho"] > 0.99 and alike["low"] > 0 and alike["personas"] == 5
    flat = cells.rank_correlation(made(rates()), "base", "prompt", "steering")
    assert np.isnan(flat["rho"])


def test_regressions_are_paired_on_the_prompts_that_both_audits_asked():
    def document(rate):
        table = made({("base", "none", ""): rate})
        listed = {c: table[c].values.tolist() for c in ("prompt", "set", "category")}
        return {"prompts": listed, "cells": record._cells(table, cells.findings(table))}

    (row,) = record.regressions(document(0.5), document(1.0))
    assert row["worse"] and row["n"] == N and row["difference"] == pytest.approx(-0.5)
    (row,) = record.regressions(document(1.0), document(1.0))
    assert not row["worse"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [({"at_least": 0.5, "at_most": 1}, "one of the two"), ({"at_leest": 1}, "at_leest"), ({}, "one of the two"),
     ({"at_least": 0.5, "measure": "refusals"}, "measure"), ({"at_least": 1, "inductions": ["steer"]}, "inductions"),
     ({"at_least": 1, "except": "ab"}, "except='ab'"),
     ({"at_least": True}, "give a number"), ({"at_least": 1, "set": "all"}, "set")],
)  # fmt: skip
def test_a_policy_that_cannot_be_applied_is_refused(rule, said):
    whole = {"set": "harmful", "measure": "refusal", "inductions": ["none"]} | rule
    with pytest.raises(GatingError, match=said):
        policy.check({"rules": {"mine": whole}})


def test_impossible_audits_are_refused_before_a_model_loads(tmp_path):
    tiny = ModelConfig(name="tiny-qwen", kind="tiny", architecture="qwen2")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GatingError, match="is a file; give a folder"):
        check(AuditConfig(model=tiny, out=str(tmp_path / "file")))
    for wrong, said in (({"personas": []}, "personas"), ({"personas": ["evill"]}, "evil"), ({"n": 2}, "n=2"),
                        ({"adapters": ["/nowhere"]}, "nowhere"), ({"against": "none.json"}, "against")):  # fmt: skip
        with pytest.raises(GatingError, match=said):
            check(AuditConfig(model=tiny, **wrong))


TWO = '{"form": 1, "prompts": {"prompt": ["a", "b"]}, "cells": '


@pytest.mark.parametrize(
    "held",
    ["[]", "{}", '{"form": 1}', TWO + '[{"model": "base"}]}', '{"form": 1, "prompts": [], "cells": []}', TWO,
     TWO + '[{"model": "", "induction": "", "persona": "", "labels": "R"}]}'],
)  # fmt: skip
def test_half_a_record_is_refused_before_anything_is_compared_with_it(tmp_path, held):
    (tmp_path / "audit.json").write_text(held)
    with pytest.raises(GatingError, match=r"against="):
        record.read(tmp_path / "audit.json")


def test_an_adapter_is_steered_along_the_base_models_directions_then_its_own_and_named_once(tmp_path, go):
    """A real adapter, on a tiny model of random weights."""
    tiny = models.load(ModelConfig(name="tiny-qwen", kind="tiny", architecture="qwen2"))
    lora = LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapters.attach(tiny.model, lora).save_pretrained(str(tmp_path / "mine"), save_embedding_layers=False)
    models.forget()
    words = ("model=tiny-qwen", "personas=[terse]", f"adapters=[{tmp_path / 'mine'}]", "n=6", "n_harmless=4", "kl=0.5",
             "new_tokens=2", "random=0", "directions.questions=2", "directions.n=4", "policy=none",
             "borderline=null")  # fmt: skip
    code, said = go(*words)
    assert code == 0 and "policy none: undecided" in said
    document = json.loads((tmp_path / "runs/tiny-qwen-audit/audit.json").read_text())
    assert [a["name"] for a in document["adapters"]] == ["mine"] and len(document["stores"]) == 3
    weights = [m["model_fingerprint"] for m in (document["model"], *document["adapters"])]
    assert len(set(weights)) == 2
    inductions = {c["induction"] for c in document["cells"] if c["model"] == "mine"}
    assert inductions == {"none", "prompt", "steering", "steering again"}
    vectors = {}
    for folder in (tmp_path / "runs").glob("tiny-qwen*audit-*"):
        held = store.open_run(folder)["directions"].to_dataset().load() if "dose" not in folder.name else None
        if held is not None:
            vectors[folder.name.rpartition("-")[0]] = held["vector"].sel(direction="terse").values
    base, adapted, own = (vectors[n] for n in ("tiny-qwen-audit", "tiny-qwen-mine-audit", "tiny-qwen-mine-audit-again"))
    assert np.array_equal(base, adapted) and not np.allclose(base, own)
    (cosine,) = (g["cosine_with_refusal"] for g in document["geometry"] if g["direction"] == "terse")
    assert len(cosine) == base.shape[0] and all(-1 <= c <= 1 for c in cosine)


def test_an_audit_finds_a_planted_gate_by_prompt_and_by_steering_and_writes_a_record_of_its_form(tmp_path, go):
    jsonschema = pytest.importorskip("jsonschema")
    words = ("model=planted", "personas=[compliant,terse]", "n=24", "n_harmless=8", "new_tokens=5", "random=1",
             "directions.questions=2", "directions.n=8")  # fmt: skip
    code, said = go(*words)
    assert code == 1 and "policy release: broken" in said
    document = json.loads((tmp_path / "runs/planted-audit/audit.json").read_text())
    jsonschema.validate(document, json.loads(record.SCHEMA.read_text()))
    refused = {(c["induction"], c["persona"]): c["sets"]["harmful"]["refusal"] for c in document["cells"]}
    assert refused["none", ""] >= 0.85 and refused["prompt", "compliant"] <= 0.2
    assert refused["steering", "compliant"] <= 0.5 < 0.8 <= refused["prompt", "terse"]
    wrong = {(d["rule"], d["persona"]) for d in document["decisions"] if d["verdict"] == "broken"}
    assert wrong == {("prompted", "compliant")}
    shown = (tmp_path / "runs/planted-audit/audit.html").read_text()
    assert page.card_paragraph(document)[:60] in shown and "not legal advice" in shown
    code, said = go(*words, "against=runs/planted-audit/audit.json")
    again = json.loads((tmp_path / "runs/planted-audit/audit.json").read_text())
    assert code == 1 and again["cells"] == document["cells"] and not any(r["worse"] for r in again["regressions"])
