"""The report in a real browser without network: figures drawn, table at work, nothing requested."""

import json
import re
import shutil
import struct
import subprocess
import zlib
from html import escape

import pytest
from report_records import (
    SETTINGS,
    make_curves,
    make_final,
    make_law,
    make_runs,
    make_samples,
    make_teachers,
)

from capgap.stages.report import run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path"
)
MARKS = {  # the least number of symbols, lines, bars or texts that each figure must show
    "headline": 12,
    "curves": 26,
    "controls": 26,
    "law": 10,
    "pareto": 50,
    "final": 6,
    "teachers": 5,
    "regret": 13,
    "training": 16,
}
PAGE = "file://{}/report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder of a report with every figure."""
    runs = make_runs(arms=("no_teacher", "random_init"))
    out = tmp_path_factory.mktemp("report") / "out"
    records = (runs, make_law(runs), make_final(), make_teachers())
    run(*records, "pocket", SETTINGS, out, curves=make_curves(), samples=make_samples())
    return out


@pytest.fixture
def browse(tmp_path):
    """Function that opens an address with some flags and returns what the browser prints."""

    def open_page(address, *flags):
        command = [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--virtual-time-budget=20000", "--window-size=1280,1600", "--hide-scrollbars"),
            *flags,
            address,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return open_page


def figures(dom):
    """Markup of every figure's box by its name, with the state in its attributes."""
    boxes = re.findall(r'<div class="chart[^"]*"([^>]*)>(.*?)<figcaption>', dom, re.DOTALL)
    return {
        re.search(r'data-chart="(\w+)"', attributes)[1]: (
            re.search(r'data-drawn="(\w+)"', attributes)[1],
            inside,
        )
        for attributes, inside in boxes
    }


def count_marks(inside):
    """Paths, texts and lines inside the groups of marks of a drawn figure."""
    groups = re.findall(
        r'<g class="mark-(?:symbol|rule|line|rect|text)[^"]*"[^>]*>(.*?)</g>', inside
    )
    return sum(len(re.findall(r"<(?:path|text|line)\b", group)) for group in groups)


def with_script(report, path, script):
    """A copy of the page that runs a script once all figures are drawn."""
    html = (report / "report.html").read_text()
    wait = (
        "<script type=module>const wait = () => document.documentElement.dataset.ready ? "
        f"(() => {{{script}}})() : setTimeout(wait, 20); wait();</script></body>"
    )
    page, end = html.rsplit("</body>", 1)
    path.write_text(page + wait + end)
    return f"file://{path}"


def requests_of_pages(log):
    """Addresses of network requests that a page made; the browser's own have no origin."""
    return {
        event["params"]["url"]
        for event in json.loads(log.read_text())["events"]
        if "url" in event.get("params", {})
        and event["params"].get("initiator", "not an origin") != "not an origin"
        and not event["params"]["url"].startswith("file:")
    }


def test_every_figure_is_drawn_with_its_marks(report, browse):
    found = figures(browse(PAGE.format(report), "--dump-dom"))
    assert set(found) == set(MARKS)
    for name, (state, inside) in found.items():
        assert state == "true", name
        assert "<svg" in inside, name
        assert count_marks(inside) >= MARKS[name], name


def test_page_requests_nothing(report, browse, tmp_path):
    log, control = tmp_path / "net.json", tmp_path / "control.html"
    browse(PAGE.format(report), f"--log-net-log={log}", "--dump-dom")
    assert requests_of_pages(log) == set()
    # The same check must see a page that does ask for something.
    control.write_text('<img src="http://reader.invalid/pixel.png">')
    browse(f"file://{control}", f"--log-net-log={log}", "--dump-dom")
    assert requests_of_pages(log) == {"http://reader.invalid/pixel.png"}


def test_table_sorts_and_filters(report, browse, tmp_path):
    script = """
    const body = document.querySelector("#runs tbody");
    const say = (name, value) => document.body.setAttribute("data-" + name, value);
    const column = [...document.querySelectorAll("#runs th")].findIndex(
      (th) => th.textContent.trim() === "T");
    const values = () => [...body.rows].map((row) => row.cells[column].dataset.value).join(" ");
    const head = document.querySelectorAll("#runs th")[column];
    head.querySelector("button").click();
    say("up", values()); say("up-state", head.getAttribute("aria-sort"));
    head.querySelector("button").click();
    say("down", values()); say("down-state", head.getAttribute("aria-sort"));
    const filter = document.getElementById("filter");
    filter.value = "NO_TEACHER 60k"; filter.dispatchEvent(new Event("input"));
    say("shown", [...body.rows].filter((row) => row.offsetHeight > 0).length);
    say("count", document.getElementById("shown").textContent);
    """
    dom = browse(with_script(report, tmp_path / "page.html", script), "--dump-dom")
    said = dict(re.findall(r'data-([\w-]+)="([^"]*)"', re.search(r"<body[^>]*>", dom)[0]))
    sizes = [r.teacher_params_non_embedding for r in make_runs(arms=("no_teacher", "random_init"))]
    known = sorted(size for size in sizes if size is not None)
    missing = [""] * sizes.count(None)
    assert said["up"].split(" ") == [*map(str, known), *missing]
    assert said["down"].split(" ") == [*map(str, known[::-1]), *missing]
    assert (said["up-state"], said["down-state"]) == ("ascending", "descending")
    assert said["shown"] == "10"  # 5 teachers, 2 seeds
    assert said["count"] == f"10 of {len(sizes)} runs"


def test_a_chosen_teacher_stands_out_in_figures_and_tables(report, browse, tmp_path):
    script = """
    const say = (name, value) => document.body.setAttribute("data-" + name, value);
    const names = (selector) => [...new Set([...document.querySelectorAll(selector)].map(
      (row) => row.dataset.teacher))].sort().join(" ");
    const points = (figure, kind) => [...new Set([...document.querySelectorAll(
      `[data-chart=${figure}] .mark-symbol path.${kind}`)].map(
      (mark) => mark.__data__.datum.teacher))].sort().join(" ");
    document.querySelector(".prices button[data-name=t340k]").click();
    say("rows", names("#runs tr.lit")); say("others", names("#runs tr.faded"));
    for (const figure of ["headline", "curves", "pareto"]) {
      say(figure, points(figure, "lit") + "|" + points(figure, "faded"));
    }
    say("note", document.getElementById("chosen").textContent);
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
    say("after", document.querySelectorAll(".lit, .faded").length);
    const mark = [...document.querySelectorAll("[data-chart=teachers] .mark-symbol path")][1];
    mark.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    say("clicked", names("#runs tr.lit"));
    """
    dom = browse(with_script(report, tmp_path / "page.html", script), "--dump-dom")
    said = dict(re.findall(r'data-([\w-]+)="([^"]*)"', re.search(r"<body[^>]*>", dom)[0]))
    others = "t180k t1m t600k t80k"
    assert (said["rows"], said["others"]) == ("t340k", f"none {others}")
    for figure in ("headline", "curves", "pareto"):
        lit, faded = said[figure].split("|")
        assert lit == "t340k", figure
        assert set(others.split()) <= set(faded.split()), figure
    assert said["note"].startswith("Showing the teacher t340k")
    assert said["after"] == "0"
    assert said["clicked"] == "t180k"


def test_a_cell_and_a_scale_of_the_learning_curves_can_be_chosen(report, browse, tmp_path):
    script = """
    const box = document.querySelector("[data-chart=training]");
    const [cell, scale] = box.querySelectorAll("select");
    const set = (select, text) => { select.value = [...select.options].find(
      (option) => option.textContent === text).value;
      select.dispatchEvent(new Event("input", { bubbles: true }));
      select.dispatchEvent(new Event("change", { bubbles: true })); };
    set(cell, "the student of 60k at 1.5M tokens"); set(scale, "above the lowest line");
    box.view.runAsync().then(() => document.body.setAttribute("data-least", Math.min(
      ...[...box.querySelectorAll(".mark-symbol.role-mark path")].map(
        (mark) => mark.__data__.datum.shown))));
    """
    dom = browse(with_script(report, tmp_path / "page.html", script), "--dump-dom")
    assert re.search(r'data-least="([^"]*)"', dom)[1] == "0"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_page_and_figures_fit_the_width(report, browse, tmp_path, width):
    script = """
    const wide = [...document.querySelectorAll(".chart")].filter((box) => {
      const spare = box.clientWidth - box.querySelector("svg").getBoundingClientRect().width;
      return spare < 0 || spare > 40;
    });
    parent.postMessage([innerWidth, document.documentElement.scrollWidth,
      wide.map((box) => box.dataset.chart).join(" ")].join(), "*");
    """
    inner = with_script(report, tmp_path / "page.html", script)
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>onmessage = (m) => document.body.setAttribute('data-said', m.data)</script>"
        f'<iframe src="{inner}" style="border:0;width:{width}px;height:9000px"></iframe>'
    )
    dom = browse(f"file://{frame}", "--dump-dom")
    assert re.search(r'data-said="([^"]*)"', dom)[1] == f"{width},{width},"


def test_figures_show_without_scripts(report, browse, tmp_path):
    frame = tmp_path / "frame.html"
    page = escape((report / "report.html").read_text())
    frame.write_text(
        f'<iframe sandbox="allow-same-origin" style="width:600px" srcdoc="{page}"></iframe>'
        "<script>const frame = document.querySelector('iframe'); frame.onload = () => {"
        "const shown = [...frame.contentDocument.querySelectorAll('.chart')].filter((box) => {"
        "const svg = box.querySelector('noscript svg'); return svg && svg.clientWidth > 500 });"
        "document.body.dataset.said = shown.map((box) => box.dataset.chart).join(' '); }</script>"
    )
    said = re.search(r'data-said="([^"]*)"', browse(f"file://{frame}", "--dump-dom"))[1]
    assert set(said.split()) == set(MARKS)


def test_screenshot_is_not_blank(report, browse, tmp_path):
    picture = tmp_path / "page.png"
    browse(PAGE.format(report), f"--screenshot={picture}")
    data = picture.read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1280, 1600)
    pixels, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            pixels += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(pixels)
    row = len(raw) // 1600
    lines = [raw[i * row : (i + 1) * row] for i in range(1600)]
    inked = sum(len(set(line[1:])) > 3 for line in lines)  # more than one colour along the line
    assert inked > 300
