"""The card of a learned judge: how often it is right on patterns that it never saw, by kind, language and length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gating.analysis.stats import wilson
from gating.judging import keywords
from gating.judging.labels import COMPLIANCE, LABELS, REFUSAL
from gating.judging.learned import GIVEN, Learned
from gating.judging.refusals import is_refusal
from gating.training.answers import Answer

HEAD = """# The learned judge {digest}

Logistic regression over hashed words, letters and concepts of prompt and answer (`gating/judging/features.py`), made by
`python -m gating.training.judge` from the patterns in `gating/data/answers`. {n_learn} answers of {p_learn} patterns to
learn from, {n_test} answers of {p_test} other patterns to test. A pattern is a way to put things, written by hand and
put on several prompts; the test prompts in English are others as well.

A label is given where its probability is at least {least}; else it is `unsure`, unless
the built-in rule, which is seldom wrong where it speaks, calls it a refusal. Temperature {temperature:.2f}.
Errors on the test patterns were read while further patterns for learning were written, so these figures flatter it;
`tests/test_learned_judge.py` prints those on strings that were written apart: a hundred that are meant to be hard,
whose errors were read once before a later training, and 120 whose errors nobody read. How sure a refusal must be was
raised after the figures on both had been seen, so that those flatter it too. A third set, 120 strings by the author of
the newest patterns, was measured on this judge, the last one and two between them; nobody read its errors.
It reads text only: no truth, no harm, and nothing behind the first {longest} characters. The strings are its authors'
own and not a sample of any model's answers: on a model of yours, label a sample by hand and compare.
"""


def text(judge: Learned, rows: Sequence[Answer]) -> str:
    """The card, as Markdown."""
    from gating.judging.features import LONGEST

    learn, test = ([r for r in rows if r.split == s] for s in ("learn", "test"))
    given = np.array([judge.label(r.prompt, r.answer)[0] for r in test])
    true = np.array([LABELS.index(r.label) for r in test])
    least = ", ".join(f"{v:.2f} ({LABELS[c]})" for c, v in zip(GIVEN, judge.least, strict=True))
    head = HEAD.format(
        digest=judge.digest, n_learn=len(learn), p_learn=_patterns(learn), n_test=len(test), p_test=_patterns(test),
        least=least, temperature=judge.temperature, longest=LONGEST,
    )  # fmt: skip
    english = np.array([r.language == "en" for r in test])
    parts = [head, "## Test patterns in English\n", *_lines(given, true, english)]
    parts += ["\n## Beside it, on the same strings\n", *_others(test, true, english)]
    parts += [
        "\n## Recall by kind (English)\n",
        *_recalls(test, given, true, english, lambda r: f"{r.label}: {r.kind}"),
    ]
    parts += ["\n## Right labels by language\n", *_recalls(test, given, true, ~english | english, lambda r: r.language)]
    parts += ["\n## Right labels by length (English)\n", *_recalls(test, given, true, english, _length)]
    return "\n".join(parts) + "\n"


def _patterns(rows: Sequence[Answer]) -> int:
    return len({r.pattern for r in rows})


def _length(row: Answer) -> str:
    edges = [n for n in (30, 60, 120, 240) if len(row.answer) < n]
    return f"{row.label}, under {edges[0]:3d} characters" if edges else f"{row.label}, 240 characters or more"


def _share(k: int, n: int) -> str:
    if n == 0:
        return "none"
    low, high = wilson(np.array(k), np.array(n))
    return f"{k}/{n} = {k / n:.2f} [{float(low):.2f}, {float(high):.2f}]"


def _lines(given: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> list[str]:
    """Precision and recall of each label, with Wilson 95% intervals."""
    lines = ["| label | precision | recall |", "| --- | --- | --- |"]
    for code in GIVEN:
        hit = int((chosen & (given == code) & (true == code)).sum())
        precision = _share(hit, int((chosen & (given == code)).sum()))
        lines.append(f"| {LABELS[code]} | {precision} | {_share(hit, int((chosen & (true == code)).sum()))} |")
    unsure = int((chosen & ~np.isin(given, GIVEN)).sum())
    return [*lines, f"\nunsure: {_share(unsure, int(chosen.sum()))}"]


def _others(test: Sequence[Answer], true: np.ndarray, english: np.ndarray) -> list[str]:
    lines = ["| judge | precision of refusal | recall of refusal |", "| --- | --- | --- |"]
    judges: dict[str, Callable[[str], bool]] = {"rule": is_refusal}
    judges |= {f"keywords {name}": keywords.finder(name) for name in keywords.LISTS}
    for name, refuses in judges.items():
        given = np.array([REFUSAL if refuses(r.answer) else COMPLIANCE for r in test])
        hit = int((english & (given == REFUSAL) & (true == REFUSAL)).sum())
        precision = _share(hit, int((english & (given == REFUSAL)).sum()))
        lines.append(f"| {name} | {precision} | {_share(hit, int((english & (true == REFUSAL)).sum()))} |")
    return lines


def _recalls(
    test: Sequence[Answer], given: np.ndarray, true: np.ndarray, chosen: np.ndarray, group: Callable[[Answer], str]
) -> list[str]:
    groups = np.array([group(r) for r in test])
    lines = ["| | right |", "| --- | --- |"]
    for name in sorted(set(groups[chosen].tolist())):
        here = chosen & (groups == name)
        lines.append(f"| {name} | {_share(int((here & (given == true)).sum()), int(here.sum()))} |")
    return lines
