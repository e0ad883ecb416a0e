"""The report in a real browser: opens from disk, asks the network for nothing, says nothing on the console, fits a
phone."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from gating.figures import base

BROWSER = next(
    (
        b
        for b in ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "chrome")
        if shutil.which(b)
    ),
    None,
)
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars")  # fmt: skip
PROBE = """<script>parent.postMessage(JSON.stringify({
  page: document.documentElement.scrollWidth, window: window.innerWidth,
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length, images: document.images.length,
  wide: [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel),
  unreached: [...document.querySelectorAll(".scroll")].filter(e => e.tabIndex < 0 || !e.ariaLabel).length,
  small: [...document.querySelectorAll("p, td, th, figcaption")]
    .filter(e => parseFloat(getComputedStyle(e).fontSize) < 11).length,
}), "*");</script></body>"""
FRAME = """<script>onmessage = e => document.title = e.data</script>
<iframe src="{page}" width="{width}" height="800" style="border: 0"></iframe>"""
OWN = ("google.com", "gstatic.com", "googleapis.com")  # the browser's services, which it asks for on any page

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or chrome on this machine: the page is not opened"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run that has everything: claims, controls, readouts, nulls, many conditions."""
    from gating import store
    from gating.pipeline import execute, study
    from gating.reporting.page import write
    from tests.conftest import compose

    folder = tmp_path_factory.mktemp("page")
    small = (
        "model=tiny-llama",
        "data.n=3",
        "data.n_harmless=3",
        "directions.questions=2",
        "directions.n=4",
        "max_new_tokens=4",
        f"runs_dir={folder}",
    )
    planned = study.prepare(*compose("experiment=paper", "directions.permutations=5", *small))
    execute.execute(planned)
    return write(store.open_run(planned.folder), planned.folder)


def browse(page: Path, tmp_path: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [str(BROWSER), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@needs_browser
def test_the_page_opens_from_disk_without_a_request_to_the_network_or_a_word_on_the_console(page, tmp_path):
    log = tmp_path / "net.json"
    out = browse(page, tmp_path, "--dump-dom", f"--log-net-log={log}", "--enable-logging=stderr", "--v=0")
    assert '<h2 id="claims">Claims: paper</h2>' in out.stdout
    assert not [line for line in out.stderr.splitlines() if "CONSOLE" in line]
    text = log.read_text()
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
    asked = {e["params"]["url"] for e in events if "url" in e.get("params", {})}
    hosts = {urlsplit(u).hostname for u in asked if u.startswith(("http", "ws", "ftp"))}
    assert not [h for h in hosts if not h.endswith(OWN)]
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:)?//""", page.read_text())


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window_and_every_picture_is_drawn(page, tmp_path, width):
    copy = tmp_path / "probe.html"
    copy.write_text(page.read_text().replace("</body>", PROBE))
    frame = tmp_path / "frame.html"  # a headless window is never narrower than about 500 px, a frame may be
    frame.write_text(FRAME.format(page=copy.as_uri(), width=width))
    out = browse(frame, tmp_path, "--dump-dom", "--window-size=1400,900", "--virtual-time-budget=4000")
    title = re.search(r"<title>(.*?)</title>", out.stdout, re.DOTALL)
    seen = json.loads(title.group(1).replace("&quot;", '"'))
    assert (
        seen["window"] == width
        and seen["page"] <= width
        and seen["broken"] == 0
        and seen["images"] >= 8
        and seen["small"] == 0
    )
    assert seen["unreached"] == 0  # what scrolls sideways can be scrolled with the keyboard
    assert width < 1000 or not seen["wide"]


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.headings, self.alts, self.lang, self.headers = [], [], "", 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.alts.append(given.get("alt") or "")
        if tag == "html":
            self.lang = given.get("lang", "")
        if tag == "th" and given.get("scope"):
            self.headers += 1


def test_a_screen_reader_finds_a_language_headings_in_order_headers_and_a_text_for_each_picture(page):
    outline = Outline()
    outline.feed(page.read_text())
    assert outline.lang == "en" and outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(outline.alts) >= 8 and all(len(a) > 30 for a in outline.alts) and outline.headers > 20


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB
SIGHT = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "full": np.eye(3).tolist(),
}


def lab(colour: str, sight: str) -> np.ndarray:
    """CIELAB of a colour as somebody with that sight sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 1e-9))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_that_stand_together_can_be_told_apart_or_have_marks_of_their_own(sight):
    for palette in (base.KIND_COLOURS, base.LABEL_COLOURS):
        names = list(palette)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                apart = np.linalg.norm(lab(palette[a], sight) - lab(palette[b], sight))
                marked = palette is base.KIND_COLOURS and base.KIND_MARKERS[a] != base.KIND_MARKERS[b]
                assert apart > 20 or marked, (a, b, apart)
    looks = [base.series(i) for i in range(20)]
    for i, first in enumerate(looks):
        for second in looks[i + 1 :]:
            apart = np.linalg.norm(lab(first["color"], sight) - lab(second["color"], sight))
            assert apart > 20 or (first["ls"], first["marker"]) != (second["ls"], second["marker"])
    shades = base.SHADES[:4]
    assert (
        min(np.linalg.norm(lab(a, sight) - lab(b, sight)) for i, a in enumerate(shades) for b in shades[i + 1 :]) > 10
    )


CLICKS = """<script>
const out = {}; at("from").value = "R"; at("to").value = "C"; at("to").dispatchEvent(new Event("input"));
out.filtered = parseInt(at("count").textContent); const l = data.runs[0].labels.own;
out.wanted = data.runs[0].prompts.filter((p, i) => l[0][i] === "R" && l[at("other").value][i] === "C").length;
at("from").value = at("to").value = ""; at("search").value = "prompt 77";
at("search").dispatchEvent(new Event("input"));
out.found = parseInt(at("count").textContent); at("search").value = ""; at("search").dispatchEvent(new Event("input"));
document.dispatchEvent(new KeyboardEvent("keydown", {key: "j"}));
out.next = document.querySelector("[aria-current=true] span").textContent;
out.cards = document.querySelectorAll(".card").length; at("controls").checked = true;
at("controls").dispatchEvent(new Event("input")); out.all = document.querySelectorAll(".card").length;
out.fits = document.documentElement.scrollWidth <= innerWidth; document.title = JSON.stringify(out);
</script></body>"""


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_of_answers_is_filtered_searched_and_stepped_through_with_200_prompts_and_60_conditions(
    tmp_path, width
):
    from gating.reporting import viewer

    rng = np.random.default_rng(0)
    kinds = ["baseline", *["named"] * 29, *["random"] * 30]
    run = {
        "name": "big", "model": "m", "judge": "learned", "traces": None, "scores": [[0.5] * 200] * 60,
        "conditions": [{"name": f"c{k}", "kind": kind} for k, kind in enumerate(kinds)],
        "prompts": [{"hash": f"{i}", "text": f"prompt {i}", "category": "x", "harmful": True} for i in range(200)],
        "answers": [[f"answer {k} {i}" for i in range(200)] for k in range(60)],
        "labels": {"own": ["".join(rng.choice(list("RCE"), 200)) for _ in range(60)]},
    }  # fmt: skip
    page = tmp_path / "view.html"
    page.write_text(viewer.page_of([run], False).replace("</body>", CLICKS))
    said = browse(page, tmp_path, f"--window-size={width},800", "--dump-dom").stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", said)[1])
    assert found["filtered"] == found["wanted"] > 0 and found["found"] == 1 and found["next"] == "prompt 78"
    assert (found["cards"], found["all"], found["fits"]) == (30, 60, True)
