"""The site builds without a warning, asks nothing of the network, and fits a telephone's screen."""

import re
import subprocess
import sys

import pytest
from headless import browser, executable
from pages import NOTEBOOKS, PAGES, ROOT

pytestmark = pytest.mark.slow


def in_browser(test):
    reason = "there is no Chromium: apt-get install chromium"
    return pytest.mark.browser(pytest.mark.skipif(executable() is None, reason=reason)(test))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_the_reference_shows_no_module_in_the_place_of_a_function(site):
    for path in (site / "reference").glob("*.html"):
        assert "doc-symbol-module" not in path.read_text(), path.name


def test_nothing_is_loaded_from_the_network(site):
    loads = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?https?:|<link\b[^>]*\bhref=["']?https?:""")
    for path in site.rglob("*.html"):
        found = [m for m in loads.findall(path.read_text()) if 'rel="canonical"' not in m]
        assert not found, (path.name, found)
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?https?:", path.read_text()), path.name


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_screen(site, width):
    with browser() as found:
        found.open((site / "index.html").as_uri(), width=width)
        for page in [*PAGES, *NOTEBOOKS]:
            url = (site / page).with_suffix(".html").as_uri()
            found.send("Page.navigate", url=url)
            found.wait(f"location.href === '{url}' && document.readyState === 'complete'")
            wide = found.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{page} is {wide} wide"
            assert found.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), page
            assert found.complaints() == [], page
        assert all(url.startswith(("file:", "about:")) for url in found.requests()), found.requests()


@in_browser
def test_search_works_in_a_folder(site):
    with browser() as found:
        found.open((site / "index.html").as_uri())
        found.wait("document.readyState === 'complete'")
        found.evaluate("""(() => {
            const input = document.querySelector("[data-md-component=search-query]")
            input.focus()
            input.value = "multiple_shooting_loss"
            input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}))
        })()""")
        found.wait("document.querySelector('.md-search-result__item a[href*=\"reference/fit.html\"]') !== null", 60)
        assert all(url.startswith(("file:", "about:")) for url in found.requests()), found.requests()
