"""Names and texts that mean something to a terminal, to Markdown, to HTML or to a formula are shown as they are."""

import io
import json
import re

from rich.console import Console

import gating
from gating import foreign
from gating.pipeline import dryrun, execute, study
from gating.reporting import page, tables
from gating.reporting.document import document
from tests.conftest import compose

NAMES = ("[/red]", "[bold]x", "$x^{$", "<b>&amp;", "a|b `c`")
CATEGORIES = ("$x^{$", "[/red]", "<script>1</script>", "_x", "a|b")


def test_a_run_with_hostile_names_and_categories_ends_and_shows_them_as_they_are(tmp_path):
    rows = [{"prompt": f"ask {i}", "category": c} for i, c in enumerate(CATEGORIES)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run, chosen, overrides = compose(
        "model=tiny-llama", "data=file", f"data.harmful={tmp_path}/mine.jsonl", "controls.random=0", "directions.n=2",
        "directions.questions=1", "max_new_tokens=2", f"runs_dir={tmp_path}/runs",
    )  # fmt: skip
    run.conditions = {name: [{"direction": "compliant", "layers": 2}] for name in NAMES}
    planned = study.prepare(run, chosen, overrides)
    printed = io.StringIO()
    out = Console(file=printed, width=200)
    dryrun.show(planned, out)
    execute.execute(planned)
    run = gating.open_run(planned.folder)
    page.write(run, planned.folder)
    out.print(tables.table(run))
    assert all(printed.getvalue().count(name) == 2 for name in NAMES)
    html = (planned.folder / "report.html").read_text(encoding="utf-8")
    assert "<script>1" not in html and "&lt;b&gt;" in html
    table = [line for line in document([run]).splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", table[0])) for line in table)


def test_markdown_shows_a_foreign_text_and_reads_nothing_in_it():
    said = foreign.markdown("a|b `c` <i>d</i> [e](http://f.g) www.h.i *j*\n# k")
    assert said == r"a\|b \`c\` \<i\>d\</i\> \[e\](http:\//f.g) www\.h.i \*j\* # k"
    assert foreign.code("a|b") == r"`a\|b`" and "`" not in foreign.code("a`b").replace(r"\`", "")
