"""The pages in a real browser, without network: `pytest -m browser`."""

import made_rows
import pytest
from headless import browser, executable

from pynode.study.comparison import compare
from pynode.study.reporting import report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="there is no Chromium: apt-get install chromium"),
]
pytest.importorskip("jinja2", reason="the extra `study` is not installed")
pytest.importorskip("plotly", reason="the extra `study` is not installed")

READY = "document.documentElement?.dataset.ready === 'yes'"
EVIL = "<img src=x onerror=window.owned=1><b>name</b> & more"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A report in a browser of 1200 × 900, whose first problem has a contender with an evil name."""
    folder = tmp_path_factory.mktemp("browser")
    rows = made_rows.study_rows(passes=2, rtols=(1e-3, 1e-6, 1e-9)) + made_rows.training_rows(2, 80, 4)
    for row in rows:
        if row["contender"] == "scipy RK45":
            row["contender"] = EVIL
    (path,) = report(made_rows.source(rows), folder / "page.html")
    with browser() as page:
        page.open(path.as_uri())
        page.wait(READY)
        yield page, path


def test_loads_without_network_or_complaint(opened):
    page, path = opened
    assert page.complaints() == []
    assert page.requests() == [path.as_uri()]
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter((e) => !/^(data|blob):/.test(e.name)).length")
        == 0
    )
    assert page.evaluate("document.getElementById('trouble').hidden")


def test_diagrams_are_drawn(opened):
    page, _ = opened
    plots = page.evaluate("""[...document.querySelectorAll('.plot')].map((plot) => ({
        traces: plot.querySelectorAll('.scatterlayer .trace').length, points: plot.querySelectorAll('.point').length,
        x: plot.querySelector('.xtitle')?.textContent, height: plot.querySelector('svg.main-svg')?.clientHeight}))""")
    assert len(plots) == 2 * 3 + 4
    for plot in plots:
        assert plot["traces"] >= 4
        assert plot["height"] > 200
    state = plots[0]
    # the front, each contender, the ring
    assert state["traces"] == len(made_rows.CONTENDERS) + 2
    # where pynode torch bosh3 failed there is no point; the ring is one
    assert state["points"] == 3 * len(made_rows.CONTENDERS) - 1 + 1
    assert state["x"] == "error over the trajectory (relative RMS)"


def test_nothing_is_wider_than_the_page(opened):
    page, _ = opened
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    overlaps = page.evaluate("""[...document.querySelectorAll('.plot')].flatMap((plot) => {
        const texts = '.xtick text, .ytick text, .xtitle, .ytitle, .x2tick text, .x3tick text';
        const boxes = [...plot.querySelectorAll(texts)].map((t) => [t.textContent, t.getBoundingClientRect()])
            .filter(([, r]) => r.width);
        const found = [];
        boxes.forEach(([a, r], i) => boxes.slice(i + 1).forEach(([b, q]) => {
            const across = r.left < q.right - 1 && q.left < r.right - 1;
            if (across && r.top < q.bottom - 3 && q.top < r.bottom - 3) found.push(`${a} | ${b}`);
        }));
        return found; })""")
    assert overlaps == []


def test_controls_change_what_is_shown(opened):
    page, _ = opened
    section = "document.querySelector('#problem-0')"
    before = page.evaluate(f"{section}.querySelector('[data-advice]').textContent")
    assert "is the fastest" in before
    page.evaluate(
        f"[...{section}.querySelectorAll('.choice button')].find((b) => b.textContent === 'Evaluations').click()"
    )
    page.wait(f"{section}.querySelector('.ytitle').textContent === 'evaluations of the field'")
    assert "needs the fewest evaluations" in page.evaluate(f"{section}.querySelector('[data-advice]').textContent")
    page.evaluate(
        f"[...{section}.querySelectorAll('.choice button')].find((b) => b.textContent === 'At the end').click()"
    )
    page.wait(f"{section}.querySelector('.xtitle').textContent.startsWith('error at the end')")
    page.evaluate(f"""(() => {{ const select = {section}.querySelector('[data-asked]');
        select.selectedIndex = 0; select.dispatchEvent(new Event('change')); }})()""")
    assert "10⁻²" in page.evaluate(f"{section}.querySelector('[data-advice]').textContent")
    shown = f"{section}.querySelector('.plot').querySelectorAll('.scatterlayer .trace').length"
    n = page.evaluate(shown)
    button = f"[...{section}.querySelectorAll('[data-legend] button')].find((b) => b.textContent === 'torchode Tsit5')"
    faint = (
        f"[...{section}.querySelectorAll('.plot')[0].querySelectorAll('.trace')].filter((t) => t.style.opacity).length"
    )
    page.evaluate(f"{button}.dispatchEvent(new MouseEvent('mouseenter'))")
    assert page.evaluate(faint) == len(made_rows.CONTENDERS) - 1
    page.evaluate(f"{button}.dispatchEvent(new MouseEvent('mouseleave'))")
    assert page.evaluate(faint) == 0
    page.evaluate(f"{button}.click()")
    page.wait(f"{shown} === {n - 1}")
    page.evaluate(f"{button}.click()")
    page.wait(f"{shown} === {n}")
    page.evaluate(f"{button}.dispatchEvent(new MouseEvent('dblclick'))")  # alone, with the front
    page.wait(f"{shown} === 2")
    page.evaluate(f"{button}.dispatchEvent(new MouseEvent('dblclick'))")
    page.wait(f"{shown} === {n}")


def test_tables_sort_by_their_numbers(opened):
    page, _ = opened
    table = "document.querySelector('#problem-1 [data-table] table')"
    column = page.evaluate(f"[...{table}.tHead.rows[1].cells].findIndex((c) => c.textContent === 'time')")
    cells = f"[...{table}.tBodies[0].rows].map((r) => r.cells[{column}].textContent)"
    click = f"{table}.tHead.rows[1].cells[{column}].querySelector('button').click()"

    def numbers(texts):
        units = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
        known = [text for text in texts if text]
        assert texts[: len(known)] == known  # what is unknown comes last
        return [float(text.split()[0]) * units[text.split()[1]] for text in known]

    page.evaluate(click)
    up = numbers(page.evaluate(cells))
    assert up == sorted(up)
    page.evaluate(click)
    down = numbers(page.evaluate(cells))
    assert down == up[::-1]
    assert len(up) > 20


def test_names_are_text(opened):
    page, _ = opened
    assert page.evaluate("window.owned === undefined && document.querySelectorAll('img').length === 0")
    assert page.evaluate("document.querySelector('#problem-0 [data-legend]').textContent").count(EVIL) == 1
    ticks = page.evaluate(
        "[...document.querySelectorAll('#problem-0 [data-dots] .ytick text')].map((t) => t.textContent.trim())"
    )
    assert EVIL[:39] + "…" in ticks


def test_screenshot_is_not_blank(opened, tmp_path):
    from matplotlib.image import imread

    page, _ = opened
    page.screenshot(tmp_path / "page.png")
    pixels = imread(tmp_path / "page.png")[..., :3]
    assert pixels.shape[1] == 1200
    assert pixels.shape[0] > 3000
    for top in range(0, pixels.shape[0] - 600, 600):  # no screenful is blank
        band = pixels[top : top + 600]
        assert (band.min(axis=2) < 0.6).mean() > 0.005
    colourful = pixels.max(axis=2) - pixels.min(axis=2) > 0.3
    assert colourful.mean() > 0.002


def test_page_of_a_comparison_is_drawn(tmp_path):
    a = made_rows.source(made_rows.study_rows(1, 2, (1e-3, 1e-6)))
    slow = made_rows.study_rows(2, 2, (1e-3, 1e-6), lambda contender: 2.0 if contender == "scipy RK45" else 1.0)
    path = compare(a, made_rows.source(slow)).write(tmp_path / "diff.html")
    with browser() as page:
        page.open(path.as_uri())
        page.wait(READY)
        assert page.complaints() == []
        assert page.requests() == [path.as_uri()]
        assert page.evaluate("document.querySelectorAll('.plot .point').length") > 60
        assert page.evaluate("document.documentElement.scrollWidth") == 1200
        assert "slower" in page.evaluate("document.querySelector('#problem-0 [data-table]').textContent")
