"""audit.html: the record for people, and the paragraphs that a model's card and a disclosure take."""

from __future__ import annotations

from typing import Any

import jinja2
from rich.table import Table

from gating.auditing.stages import BASE


def rendered(document: dict[str, Any]) -> str:
    """One self-contained page. Everything in it comes from the record."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gating.auditing"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"share": share, "points": points}
    return environment.get_template("audit.html.j2").render(
        d=document, card=card_paragraph(document), disclosure=disclosure(document), worst=worst(document)
    )


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.0f}"


def worst(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Cells with harmful prompts, those that refuse least first, random directions last."""
    cells = [c for c in document["cells"] if "harmful" in c["sets"]]
    return sorted(cells, key=lambda c: (c["induction"] == "random", c["sets"]["harmful"]["refusal"] or 0.0))


def card_paragraph(document: dict[str, Any]) -> str:
    """For a model card: what was asked, what came out, what it does not say."""
    base = next(c for c in document["cells"] if (c["model"], c["induction"]) == (BASE, "none"))["sets"]["harmful"]
    prompted = [c for c in document["cells"] if c["induction"] == "prompt" and c["model"] == BASE]
    low = min(prompted, key=lambda c: c["sets"]["harmful"]["refusal"] or 0.0) if prompted else None
    text = (
        f"Persona audit ({document['made'][:10]}, gating): without a persona {share(base['refusal'])} of {base['n']} "
        f"harmful requests were refused (95% interval {share(base['refusal_low'])} to {share(base['refusal_high'])})."
    )
    if low is not None:
        row = low["sets"]["harmful"]
        text += (
            f" Of {len(prompted)} personas in the system message, {low['persona']} took most away: "
            f"{share(row['refusal'])} ({share(row['refusal_low'])} to {share(row['refusal_high'])}), a change of "
            f"{points(row['change'])} points ({points(row['change_low'])} to {points(row['change_high'])})."
        )
    return text + f" Policy {document['policy'].get('policy', 'none')}: {document['verdict']}. {document['limits'][-1]}"


def disclosure(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Field, value, recipient: a template to fill in; evidence for a documentation duty, never a statement of
    conformity. Where nothing is known here, the field says so."""
    to_fill = "(to be filled in by the provider)"
    model, method = document["model"], document["method"]
    adapters = ", ".join(a["name"] for a in document["adapters"]) or "none"
    result = f"policy {document['policy'].get('policy', 'none')}: {document['verdict']}"
    harmful = f"{method['prompts']['harmful']} harmful requests, {method['new_tokens']} tokens, {method['decoding']}"
    behind = model.get("endpoint")
    which = f"revision {model['model_revision']}, weights {model['model_fingerprint']}"
    return [
        ("model and revision", f"{model['model_id']}, " + (f"{behind['url']}, weights not seen" if behind else which),
         "authority, downstream"),
        ("provider and contact", to_fill, "authority, downstream"),
        ("modifications examined", adapters, "authority, downstream"),
        ("computation of the modification", to_fill, "authority"),
        ("evaluation", f"personas by prompt{'' if behind else ' and by steering'}; {harmful}", "authority, downstream"),
        ("result", result, "authority, downstream"),
        ("known limits", " ".join(document["limits"]), "authority, downstream"),
        ("measures taken", to_fill, "authority"),
        ("serious incidents known", to_fill, "authority"),
    ]  # fmt: skip


def table(document: dict[str, Any], most: int = 12) -> Table:
    """The weakest cells, for a terminal."""
    out = Table(title=f"{document['model']['name']}: refusal, the weakest first")
    for heading in ("model", "induction", "persona", "harmful", "95% interval", "n", "change", "degen.", "harmless"):
        out.add_column(heading, justify="left" if heading in ("model", "induction", "persona") else "right")
    for cell in worst(document)[:most]:
        h, safe = cell["sets"]["harmful"], cell["sets"].get("harmless")
        interval = f"{share(h['refusal_low'])} to {share(h['refusal_high'])}"
        out.add_row(
            cell["model"], cell["induction"], cell["persona"], share(h["refusal"]), interval, str(h["n"]),
            points(h["change"]), share(h["degenerate"]), share(safe["refusal"] if safe else None),
        )  # fmt: skip
    return out
