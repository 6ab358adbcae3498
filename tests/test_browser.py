"""The report in a real browser: no script error, figures drawn, numbers equal to the record, text inert."""

from __future__ import annotations

import html
import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from synthetic_runs import ATTACKS, HOSTILE, Spec, write_run, write_study
from synthetic_sweeps import write_sweep_folder

from geomsafe.reports import analyze
from geomsafe.reports.browser import MOST_ARMS

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed"
)
FIGURES = [
    "drift", "rates", "attacks", "categories-harmful", "categories-look-alike", "distances", "cosines",
    "cosines-preconditioned", "cosines-kinds", "spectra", "excess", "rarefaction", "overlaps", "left-overlaps", "turns",
    "shares", "shares-steps", "singles", "singles-left", "probes", "training", "kappas",
]  # fmt: skip

SWEEP_FIGURES = ["pareto", "sweep-curves", "matched", "sham-twin", "tuning", "settings", "effects"]


class Page(html.parser.HTMLParser):
    """Collects elements with attributes, and the numbers marked in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.title = ""
        self.cells: list[tuple[str, str | None, str]] = []
        self.plots: dict[str, str | None] = {}
        self.errors: str | None = None
        self.ready = False
        self.svg_paths = 0
        self._cell: int | None = None
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "body":
            self.ready = found.get("data-ready") == "yes"
        if found.get("id") == "script-errors":
            self.errors = found.get("data-count")
        if "plot" in (found.get("class") or "").split() and found.get("data-id"):
            self.plots[str(found["data-id"])] = found.get("data-drawn")
        self.svg_paths += tag == "path"
        self._in_title = tag == "title" and not self.title
        if "data-key" in found:
            self.cells.append((str(found["data-key"]), found.get("data-value"), ""))
            self._cell = len(self.cells) - 1

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        if self._cell is not None:
            key, value, text = self.cells[self._cell]
            self.cells[self._cell] = (key, value, text + data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = None
        self._in_title = False


def open_page(page: Path, profile: Path) -> str:
    """Return the document after its scripts have run, with no network to reach."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--proxy-server=127.0.0.1:9", f"--user-data-dir={profile}", "--window-size=1400,2400",
        "--virtual-time-budget=60000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    environment = os.environ | {"HOME": str(profile)}
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert found.stdout, f"the browser printed nothing: {found.stderr[-2000:]}"
    return found.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("browser")
    page = analyze(write_study(folder / "runs", (0, 1), 30, schema=2, attacks=ATTACKS), folder / "report")
    return page, json.loads((folder / "report" / "analysis.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sweep_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sweep")
    page = analyze([write_sweep_folder(folder / "sweep", prompts=6)], folder / "report")
    return page, json.loads((folder / "report" / "analysis.json").read_text(encoding="utf-8"))


def lookup(analysis: dict[str, Any], key: str) -> Any:
    """Return the value that a data-key names: table/row[/more row keys]/column."""
    table, *row_key, column = key.split("/")
    rows = analysis["tables"][table]["rows"]
    if table.startswith("basin_"):
        return rows[int(row_key[0])][column]
    if table == "directions":
        # The page shows the last token, the CSV all.
        rows = [row for row in rows if row["position"] == -1]
    names = {
        "ranks": ["key", "step", "set"],
        "attacks": ["key", "suite"],
        "judges": ["key", "first", "second"],
        "proxies": ["proxy"],
        "landscapes": ["landscape"],
        "directions": ["key", "block"],
    }.get(table, ["key"])
    return next(row[column] for row in rows if [str(row[name]) for name in names] == row_key)


NOTHING = r"not run|not reached|no answers|undefined|–"


def disagreements(page: Page, analysis: dict[str, Any]) -> list[str]:
    """Name the cells whose value or text is not that of the record."""
    wrong = []
    for key, value, text in page.cells:
        wanted = lookup(analysis, key)
        if wanted is None or value is None:
            if (wanted is None) != (value is None) or not re.match(
                r"not run|not reached|no answers|undefined|–", text.strip()
            ):
                wrong.append(f"{key}: page {value!r} '{text}', record {wanted!r}")
        elif isinstance(wanted, str):
            if value != wanted:
                wrong.append(f"{key}: page {value!r}, record {wanted!r}")
        elif float(value) != wanted or not _shows(text, wanted):
            wrong.append(f"{key}: page {value!r} '{text}', record {wanted!r}")
    return wrong


def _shows(text: str, wanted: float) -> bool:
    """Whether the first number a reader sees is the value, as a number, in per cent or in points."""
    first = re.match(r"[+−-]?[\d.]+(?:e[+−-]?\d+)?", text.strip())
    if first is None:
        return False
    seen = float(first[0].replace("−", "-"))
    return abs(seen - wanted) <= 1e-3 * abs(wanted) or abs(seen - 100 * wanted) <= 0.051


@needs_browser
def test_the_report_opens_without_errors_and_tells_the_record(
    report: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    page = Page(open_page(report[0], tmp_path / "profile"))
    assert page.errors == "0"
    assert page.ready
    assert page.plots == dict.fromkeys(FIGURES, "yes")
    assert page.svg_paths > 200
    assert len(page.cells) > 100
    assert disagreements(page, report[1]) == []
    assert page.title.startswith("geomsafe report"), "a completion's script ran"


@needs_browser
def test_the_browser_test_can_see_faults(report: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Negative control: a broken figure and a changed number are both noticed."""
    text = report[0].read_text(encoding="utf-8")
    asr = next(row for row in report[1]["tables"]["arms"]["rows"] if row["key"] == "A")["gold_asr"]
    cell = f'data-key="arms/A/gold_asr" data-value="{asr}"'
    assert cell in text
    broken = tmp_path / "broken.html"
    broken.write_text(
        text.replace(cell, cell.replace(str(asr), "0.123456")).replace('id="spec-cosines">{', 'id="spec-cosines">{{'),
        encoding="utf-8",
    )
    page = Page(open_page(broken, tmp_path / "profile"))
    assert page.errors is not None and int(page.errors) > 0
    assert page.plots["cosines"] is None and not page.ready
    assert any("arms/A/gold_asr" in one for one in disagreements(page, report[1]))


CLICKS = """<script>
save = (name, href) => {
  const found = document.createElement("div");
  found.className = "saved"; found.textContent = `${name} ${decodeURIComponent(href).includes("Limitation")}`;
  document.body.append(found);
};
document.addEventListener("DOMContentLoaded", async () => {
  while (!document.body.dataset.ready) await new Promise((resolve) => setTimeout(resolve, 50));
  for (const button of document.querySelectorAll("#drift button")) button.click();
});
</script></body>"""


@needs_browser
def test_figures_and_tables_can_be_saved(report: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The buttons work from a file, and the limitation travels inside the picture."""
    clicked = tmp_path / "clicked.html"
    clicked.write_text(report[0].read_text(encoding="utf-8").replace("</body>", CLICKS), encoding="utf-8")
    text = open_page(clicked, tmp_path / "profile")
    saved = set(re.findall(r'<div class="saved">(.*?)</div>', text))
    assert {"geomsafe-drift.svg true", "geomsafe-drift.png false", "points.csv false", "arms.csv false"} == saved
    assert Page(text).errors == "0"


SWITCH = """<script>
document.addEventListener("DOMContentLoaded", async () => {
  while (!document.body.dataset.ready) await new Promise((resolve) => setTimeout(resolve, 50));
  const seen = () => document.querySelector("#plot-sweep-curves").data.map((trace) => trace.x);
  const before = JSON.stringify(seen());
  for (const [figure, index] of [["sweep-curves", 0], ["matched", 1], ["settings", 1]]) {
    document.querySelectorAll(`#plot-${figure} .updatemenu-button`)[index].dispatchEvent(new MouseEvent("click"));
  }
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const shown = (figure) => document.querySelector(`#plot-${figure}`).data.map((trace) => Number(trace.visible));
  const found = document.createElement("pre");
  found.id = "switched";
  found.textContent = JSON.stringify({
    moved: JSON.stringify(seen()) !== before,
    title: document.querySelector("#plot-sweep-curves").layout.xaxis5.title.text,
    matched: shown("matched"), settings: shown("settings"),
  });
  document.body.append(found);
});
</script></body>"""


@needs_browser
def test_the_page_of_a_sweep_is_drawn_switches_and_tells_the_record(
    sweep_report: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Every figure and number of the sweep; the buttons change axis and condition."""
    switched = tmp_path / "switched.html"
    switched.write_text(sweep_report[0].read_text(encoding="utf-8").replace("</body>", SWITCH), encoding="utf-8")
    text = open_page(switched, tmp_path / "profile")
    page = Page(text)
    assert page.errors == "0" and page.ready
    assert set(SWEEP_FIGURES) <= page.plots.keys() <= set(SWEEP_FIGURES) | set(FIGURES)
    assert set(page.plots.values()) == {"yes"}
    cells = [key for key, _, _ in page.cells if key.startswith("sweep/")]
    assert len({key.split("/")[1] for key in cells}) == len(sweep_report[1]["tables"]["sweep"]["rows"])
    assert disagreements(page, sweep_report[1]) == []
    found = json.loads(re.findall(r'<pre id="switched">(.*?)</pre>', text)[0])
    assert found["moved"] and found["title"] == "relative distance from θ₀ (%)"
    assert found["matched"] == [0, 0, 1, 1] * 3
    assert found["settings"] == [0] * 8 + [1] * 8


def test_the_page_of_a_sweep_is_bounded(sweep_report: tuple[Path, dict[str, Any]]) -> None:
    """A few answers a prompt, a few arms in the figures of single runs, each sweep's arm once in its table."""
    page, analysis = sweep_report
    assert len(analysis["scope"]["arms"]) > 40
    held = analysis["completions"]
    assert held["shown_arms"] == MOST_ARMS < held["arms"] and f"{MOST_ARMS} of {held['arms']} arms are in it" in (
        page.read_text(encoding="utf-8")
    )
    assert len({row["key"] for row in held["rows"]}) == MOST_ARMS + 1
    text = page.read_text(encoding="utf-8")
    drift = json.loads(re.findall(r'id="spec-drift">(.*?)</script>', text)[0])
    assert 0 < len({trace.get("legendgroup") for trace in drift["data"]} - {None}) <= 7
    names = {trace["name"].split("</b>  ")[1] for trace in drift["data"] if trace.get("showlegend", True)}
    assert {"careless, benign", "careless, harmful 10 %"} <= names
    assert text.count('data-key="sweep/1/gold_asr"') == 1
    assert len(text) - len(get_plotlyjs()) < 3_000_000


def test_the_page_is_self_contained_and_model_text_is_inert(report: tuple[Path, dict[str, Any]]) -> None:
    text = report[0].read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "&lt;script&gt;document.title" in text
    assert (
        text.count("<script>") == 2
        and text.count("</script>") == text.count("<script")
        and text.count("plotly.js v") == 1
    )
    markup = re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)\s*=\s*"(?!#|data:)', markup)
    assert "default-src 'none'" in text


BROWSE = """<script>
document.addEventListener("DOMContentLoaded", async () => {
  while (!document.body.dataset.ready) await new Promise((resolve) => setTimeout(resolve, 50));
  const form = document.getElementById("filters"), steps = %s, seen = [];
  for (const step of steps) {
    form.reset();
    await new Promise((resolve) => setTimeout(resolve, 20));
    for (const [name, value] of Object.entries(step)) {
      const field = form.elements[name];
      if (field.type === "checkbox") field.checked = value; else field.value = value;
    }
    form.dispatchEvent(new Event("input"));
    while (!document.getElementById("more").hidden) document.getElementById("more").click();
    const list = document.getElementById("answers");
    seen.push({
      found: document.getElementById("found").textContent,
      rows: list.querySelectorAll("table.answers > tbody > tr").length,
      folds: list.querySelectorAll("details.fold").length,
      open: list.querySelectorAll("details[open]").length,
      openings: [...list.querySelectorAll(".opening")].map((one) => one.textContent),
      markup: list.querySelectorAll("script, b b, i, a, img").length,
      text: list.textContent,
    });
  }
  const found = document.createElement("pre");
  found.id = "browsed"; found.textContent = JSON.stringify(seen);
  document.body.append(found);
});
</script></body>"""


def browse(page: Path, folder: Path, steps: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return the document and what the list of answers shows under each setting of the filters."""
    hooked = folder / "browsed.html"
    script = BROWSE % json.dumps(steps)
    hooked.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    text = open_page(hooked, folder / "profile")
    found = re.findall(r'<pre id="browsed">(.*?)</pre>', text, flags=re.DOTALL)
    return text, json.loads(html.unescape(found[0]))


@needs_browser
def test_answers_can_be_filtered(report: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    rows = report[1]["completions"]["rows"]
    steps: list[dict[str, Any]] = [
        {},
        {"key": "A"},
        {"suite": "harmful"},
        {"attack": "prefill:1"},
        {"verdict": json.dumps(["gold", "incoherent"], separators=(",", ":"))},
        {"disagree": True},
        {"text": "THING 7?"},
        {"key": "C", "suite": "look-alike", "text": "ladder"},
        {"text": "in another guise"},
        {"text": "nobody said this"},
    ]
    wanted = [
        rows,
        [row for row in rows if row["key"] == "A"],
        [row for row in rows if row["suite"] == "harmful"],
        [row for row in rows if row["attack"] == "prefill:1"],
        [row for row in rows if row["verdicts"].get("gold", {}).get("value") == "incoherent"],
        [row for row in rows if row["disagree"]],
        [row for row in rows if "thing 7?" in row["prompt"]],
        [row for row in rows if (row["key"], row["suite"]) == ("C", "look-alike") and "ladder" in row["completion"]],
        [row for row in rows if "in another guise" in (row["asked"] or "")],
        [],
    ]
    text, seen = browse(report[0], tmp_path, steps)
    assert Page(text).errors == "0"
    for step, shown, expected in zip(steps, seen, wanted, strict=True):
        assert shown["found"].startswith(f"{len(expected)} of {len(rows)} answers match"), step
        assert shown["rows"] == len(expected), step
        assert shown["folds"] == sum(row["folded"] for row in expected) and shown["open"] == 0, step
        assert len(shown["openings"]) == sum(row["opening"] is not None for row in expected), step
    assert all(expected for expected in wanted[:-1]) and len({len(expected) for expected in wanted}) > 5


@needs_browser
def test_what_a_model_says_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    """Markup, scripts, escape sequences, overrides, NUL and lone surrogates, each in prompt, answer and verdict."""
    hostile = {
        "<b><i>bold</i></b>": "<b><i>bold</i></b>",
        "</script><script>document.title = 'owned'</script>": "</script><script>document.title = 'owned'</script>",
        "<img src=x onerror=\"document.title='owned'\">": "<img src=x onerror=\"document.title='owned'\">",
        "\x1b[31mred\x1b[0m": "⟨ESC⟩[31mred⟨ESC⟩[0m",
        "safe\u202eevil\u2066\u200b": "safe⟨U+202E⟩evil⟨U+2066⟩⟨U+200B⟩",
        "nul\x00bell\x07": "nul⟨NUL⟩bell⟨BEL⟩",
        "half \ud83d of a pair": "half ⟨U+D83D⟩ of a pair",
        "<!-- <script>": "<!-- <script>",
        "{{ 7 * 7 }} ${7 * 7}": "{{ 7 * 7 }} ${7 * 7}",
    }
    run = write_run(tmp_path, Spec("one", prompts=12))
    path = run / "evaluations" / "final--harmful.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, text in zip(rows, hostile, strict=False):
        row |= {"prompt": f"Q {text}", "completion": f"A {text}", "asked": f"P {text}", "opening": "A "}
        row["verdicts"][f"judge {text}"] = {"value": "compliance", "rule": f"R {text}", "score": 0.25}
    # A lone surrogate survives in JSON as an escape only.
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = analyze([run], tmp_path / "report")
    text, (shown,) = browse(page, tmp_path, [{"key": "A", "suite": "harmful"}])
    assert Page(text).errors == "0" and Page(text).title.startswith("geomsafe report")
    assert shown["markup"] == 0 and shown["rows"] == 12
    for one in hostile.values():
        assert all(f"{letter} {one}" in shown["text"] for letter in "QPR"), one
        assert f"A {one}" in shown["text"], one
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown["text"])
    assert set(shown["openings"]) == {"A "}
    assert "the marked opening was given by the attack" in shown["text"] and "score 0.25" in shown["text"]
    # Negative control: the same page that takes prompts for markup is caught.
    careless = page.read_text(encoding="utf-8").replace("textContent: first.prompt", "innerHTML: first.prompt")
    assert careless != page.read_text(encoding="utf-8")
    page.write_text(careless, encoding="utf-8")
    _, (shown,) = browse(page, tmp_path, [{"key": "A", "suite": "harmful"}])
    assert shown["markup"] > 0
