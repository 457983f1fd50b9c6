"""The report's files: the page, figures, tables."""

import base64
import csv
import gzip
import importlib
import json
import random
import re
import statistics
from html.parser import HTMLParser

import made_rows
import pytest

from pynode.errors import InputError, StudyError
from pynode.study.reporting import FORMATS, report
from pynode.study.reporting.page import packed_plotly

pytest.importorskip("jinja2", reason="the extra `study` is not installed")
pytest.importorskip("plotly", reason="the extra `study` is not installed")
pandas = pytest.importorskip("pandas", reason="the extra `study` is not installed")

EVIL = "</script><script>window.owned=1</script><img src=x onerror=window.owned=1>&amp;\"'{{7*7}}<b>b</b>"


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def packed(page, name):
    text = re.search(rf'<script type="text/plain" id="{name}">([A-Za-z0-9+/=]*)</script>', page)[1]
    return gzip.decompress(base64.b64decode(text)).decode()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rows = made_rows.study_rows(rtols=(1e-3, 1e-7)) + made_rows.training_rows(seeds=2, steps=50, epochs=3)
    (path,) = report(made_rows.source(rows), tmp_path_factory.mktemp("report") / "deep" / "page.html")
    assert path.name == "page.html"
    return path.read_text(encoding="utf-8")


def test_page_loads_nothing(page):
    assert len(page.encode()) <= 5_000_000
    for tag, attributes in Tags(page).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert not (value := attributes.get(name)) or value.startswith(("#", "data:")), (tag, attributes)
    styles = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in styles
    assert "@import" not in styles
    policy = next(a["content"] for t, a in Tags(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert "unsafe-eval" not in policy
    assert "plotly.js v" in packed(page, "packed-plotly")[:200]


def test_page_has_what_was_measured(page):
    data = json.loads(packed(page, "packed-data"))
    lotka = data["problems"][0]
    labels = [" ".join([package, *options.values()]) for package, options in made_rows.CONTENDERS]
    assert [c["label"] for c in lotka["contenders"]] == sorted(labels, key=str.lower)
    rows = [r for r in made_rows.study_rows(rtols=(1e-3, 1e-7)) if r["problem"] == "lotka_volterra"]
    rows.sort(key=lambda r: (r["contender"].lower(), -r["rtol"]))
    assert lotka["points"]["error_end"] == pytest.approx([r["error_end"] for r in rows], rel=1e-4)
    for told in lotka["measures"]["state"]["errors"].values():
        assert len(told["advice"]["seconds"]) == len(told["asked"])
    text = " ".join(Tags(page).text)
    for words in ("the process ended by signal 11", "SciPy's solvers have no gradient", "Example CPU 9000", "f5853e3"):
        assert words in text
    sentence = lotka["measures"]["gradient"]["errors"]["gradient_error"]
    asked = sentence["asked"].index(sentence["usual"])
    assert sentence["advice"]["seconds"][asked]["sentence"] in text.replace("\u2060", "")  # without a script too


def test_what_users_named_is_text(tmp_path):
    rows = made_rows.study_rows(rtols=(1e-3,))[:4] + made_rows.training_rows(1, 5, 2)
    for row in rows:
        row |= {"problem": EVIL, "contender": f"{EVIL} {row['contender']}"}
    rows[1] = made_rows.failed(rows[1], "failed", EVIL)
    rows[2] = made_rows.failed(rows[2], "not_comparable", EVIL)
    source = made_rows.source(rows, name=EVIL, problems={EVIL: {"description": EVIL, "source": EVIL, "how": EVIL}})
    source["environments"] = {"e1": {"processor": EVIL, "packages": {EVIL: EVIL}}}
    (path,) = report(source, tmp_path / "page.html")
    tags = Tags(path.read_text(encoding="utf-8")).tags
    assert not [attributes for tag, attributes in tags if tag == "img"]
    assert not [a for _, a in tags if any(name.startswith("on") for name in a)]
    scripts = [attributes for tag, attributes in tags if tag == "script"]
    assert len(scripts) == 3
    assert [a.get("id") for a in scripts] == ["packed-data", "packed-plotly", None]
    assert "49<b>" not in path.read_text(encoding="utf-8")


def test_csv_reads_back_equal(tmp_path):
    rows = made_rows.study_rows(rtols=(1e-3, 1e-9)) + made_rows.training_rows(1, 20, 3)
    rows[0]["reason"] = 'a "quoted", reason\nof two lines'
    (path,) = report(made_rows.source(rows), tmp_path / "study.html", "csv")
    with open(path, newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows)
    for before, after in zip(rows, read, strict=True):
        for key, value in before.items():
            if isinstance(value, (dict, list)):
                assert json.loads(after[key]) == value
            elif value is None or value == "":
                assert after[key] == ""
            else:
                assert type(value)(after[key]) == value, key


def test_parquet_reads_back_equal(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra `study` is not installed")
    rows = made_rows.study_rows(rtols=(1e-3, 1e-9)) + made_rows.training_rows(1, 20, 3)
    (path,) = report(made_rows.source(rows), tmp_path, "parquet")
    assert path == tmp_path / "report.parquet"
    read = pandas.read_parquet(path)
    assert str(read["nfe"].dtype) == "Int64"
    for before, (_, after) in zip(rows, read.iterrows(), strict=True):
        for key, value in before.items():
            got = after[key]
            if isinstance(value, dict):
                assert json.loads(got) == value
            elif isinstance(value, list):
                assert list(got) == value
            elif value is None:
                assert got is None or pandas.isna(got), key
            else:
                assert got == value, key


def test_latex_is_a_table(tmp_path):
    rows = made_rows.study_rows(rtols=(1e-3, 1e-9))
    rows[0] |= {"contender": r"50 % of \$x_1^2$ & #{}~<>"}
    rows[1] |= {"problem": "lotka volterra"}  # another problem, the same name for a file
    rows[2] |= {"problem": "lotka_volterra!"}
    files = report(made_rows.source(rows + made_rows.training_rows(2, 10, 2)), tmp_path, ["latex"])
    assert [f.name for f in files] == [
        "report-lotka_volterra.tex",
        "report-lotka-volterra.tex",
        "report-lotka_volterra-2.tex",
        "report-van_der_pol.tex",
        "report-annuli-training.tex",
    ]
    text = files[0].read_text()
    assert (
        r"50 \% of \textbackslash{}\$x\_1\textasciicircum{}2\$ \& \#\{\}\textasciitilde{}\textless{}\textgreater{}"
        in text
    )
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert all(len(re.split(r"(?<!\\)&", line)) == 8 for line in body)
    error, time = rows[0]["error_trajectory"], statistics.median(rows[0]["seconds_all"])
    mantissa, exponent = f"{error:.1e}".split("e")
    line = next(line for line in body if line.startswith("50"))
    assert rf"${mantissa}\times 10^{{{int(exponent)}}}$" in line
    assert f"{time * 1e6:.0f}" in line
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 1
    assert r"\textbf{" in text
    assert "$" in files[-1].read_text()


@pytest.mark.slow
def test_figures_are_written(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `study` is not installed")
    rows = [r for r in made_rows.study_rows(rtols=(1e-3, 1e-7)) if r["package"] in ("scipy", "diffrax")]
    for row in rows:
        row["contender"] += " $x_1"  # is not mathematics
    rows = [r for r in rows if r["problem"] == "lotka_volterra"] + made_rows.training_rows(1, 10, 2)
    nobody = made_rows.failed(rows[0] | {"problem": "nobody"}, "timeout", "took over 300 s")
    files = report(made_rows.source([*rows, nobody]), tmp_path / "r.html", ("png", "svg"))
    assert [f.name for f in files] == [
        "r-lotka_volterra-work-precision.png",
        "r-lotka_volterra-work-precision.svg",
        "r-annuli-training.png",
        "r-annuli-training.svg",
    ]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert files[0].stat().st_size > 20_000
    from pynode.study.reporting.paper import figures
    from pynode.study.reporting.source import load

    drawn = figures(load(made_rows.source(rows)))["lotka_volterra-work-precision"]
    state, gradient = drawn.axes
    assert state.get_xlabel() == "error over the trajectory (relative RMS)"
    assert gradient.get_title() == "gradient"
    (first,) = [c for c in state.containers if c.get_label().startswith("diffrax")]
    (row, *_) = sorted((r for r in rows if r["package"] == "diffrax"), key=lambda r: -r["rtol"])
    assert first.lines[0].get_xydata()[0] == pytest.approx([row["error_trajectory"], row["seconds"]], rel=0.02)
    assert next(t.get_text() for t in drawn.legends[0].get_texts()) == r"diffrax Tsit5 \$x_1"


def test_a_study_without_a_solve_has_a_page(tmp_path):
    row = made_rows.row("p", "scipy", {"solver": "RK45"}, rtol=1e-6)
    alone = made_rows.failed(row, "crashed", "the process ended by signal 9")
    (path,) = report({"rows": [alone]}, tmp_path / "p.html")
    assert "No contender solved it" in path.read_text(encoding="utf-8")
    empty = {key: row[key] for key in ("problem", "contender", "status")}
    (path,) = report({"rows": [empty]}, tmp_path / "q.html")  # no numbers at all
    assert "No contender solved it" in path.read_text(encoding="utf-8")


def test_page_of_a_large_study_is_small(tmp_path):
    rng = random.Random(0)
    rows = []
    for problem in range(8):
        for k in range(40):
            for rtol in (1e-3, 1e-5, 1e-7):
                row = made_rows.row(f"problem {problem}", "scipy", {"solver": "RK45"}, rtol=rtol, rng=rng)
                rows.append(row | {"contender": f"contender {k} of the study"})
    (path,) = report(made_rows.source(rows), tmp_path / "large.html")
    assert path.stat().st_size <= 5_000_000


@pytest.mark.parametrize("name", ["jinja2", "plotly", "pandas", "pyarrow", "matplotlib"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name):
    def missing(module, *args, **kwargs):
        if module.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importing(module, *args, **kwargs)

    importing = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", missing)
    packed_plotly.cache_clear()
    chosen = {"jinja2": "html", "plotly": "html", "pandas": "csv", "pyarrow": "parquet", "matplotlib": "svg"}[name]
    rows = made_rows.study_rows(rtols=(1e-3,))[:2]
    with pytest.raises(StudyError, match=rf"needs {name}, which is not installed: pip install 'pynode-sciml\[study\]'"):
        report(made_rows.source(rows), tmp_path / "r.html", chosen)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"unknown format of a report 'pdf': expected one of"):
        report({"rows": []}, tmp_path / "r.html", ("html", "pdf"))
    assert list(tmp_path.iterdir()) == []
    assert set(FORMATS) == {"html", "png", "svg", "csv", "parquet", "latex"}
