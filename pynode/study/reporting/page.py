"""The HTML page: one file, with its script and its data inside, which asks the network for nothing."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import math
import re
import secrets
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from pynode.study.optional import need
from pynode.study.reporting.failures import STATUSES
from pynode.study.reporting.fairness import remarks
from pynode.study.reporting.overview import overview
from pynode.study.reporting.problem_data import problem_data
from pynode.study.reporting.provenance import provenance
from pynode.study.reporting.source import Row, Source
from pynode.study.reporting.style import looks, training_looks
from pynode.study.reporting.training import curves, summary
from pynode.study.reporting.units import plus_minus, scientific, slug

__all__ = ["packed_plotly", "page", "render"]

_SCRIPTS = ("core.js", "diagrams.js", "training.js", "comparison.js", "main.js")


def page(source: Source) -> str:
    """The report as HTML."""
    styles = looks(source.solves)
    solved = [problem_data(source, name, place, styles) for place, name in enumerate(_names(source.solves))]
    trained = [
        _training(source.trainings, name, place, source.problems.get(name, {}))
        for place, name in enumerate(_names(source.trainings))
    ]
    data = {
        "problems": [problem["data"] for problem in solved],
        "training": [training["data"] for training in trained],
    }
    return render(
        "report.html",
        data=data,
        title=source.name,
        problems=solved,
        trainings=trained,
        overview=overview(source, solved),
        remarks=remarks(source),
        provenance=provenance(source),
    )


def render(template: str, data: object, **values: Any) -> str:
    """A template with the script that draws, and the data for it, packed.

    The page's policy lets only scripts with this page's nonce run, and nothing be fetched: a name that a user chose
    cannot become a script, even if it were not escaped.
    """
    jinja = need("jinja2", "the HTML page")
    environment = jinja.Environment(
        loader=jinja.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        scientific=scientific, heat=_heat, slug=slug, status=_status, plus_minus=plus_minus, unbroken=_unbroken
    )
    return str(
        environment.get_template(template).render(
            css=_safe(_read("page.css")),
            script=_safe("\n".join(map(_read, _SCRIPTS))),
            plotly=packed_plotly(),
            data=_packed(json.dumps(_plain(data), ensure_ascii=False, allow_nan=False)),
            nonce=secrets.token_urlsafe(16),
            **values,
        )
    )


def _heat(times: float) -> str:
    """How dark a cell is: the fastest is darkest, a hundred times as slow is white."""
    return f"{max(0.0, 1 - math.log10(times) / 2):.2f}"


def _unbroken(sentence: str) -> str:
    """The sentence with no line's end within a number such as 1e-6: a word joiner after its hyphen."""
    return re.sub(r"(?<=\de-)(?=\d)", "\u2060", sentence)


def _status(status: str) -> str:
    return STATUSES.get(status, status)


def _read(name: str) -> str:
    return (files("pynode.study.reporting") / "template" / name).read_text(encoding="utf-8")


def _safe(text: str) -> Any:
    """Text of the package's own that is not to be escaped."""
    return need("markupsafe", "the HTML page").Markup(text)


def _packed(text: str) -> str:
    """The text, compressed, in letters: a browser unpacks it by `DecompressionStream`."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode("ascii")


@functools.cache
def packed_plotly() -> str:
    """The library that draws, packed; once for all pages of a process."""
    return _packed(str(need("plotly.offline", "the HTML page").get_plotlyjs()))


def _plain(value: Any) -> Any:
    """The value with numbers that JSON has: what is not finite is null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["problem"] for row in rows))


def _training(rows: Sequence[Row], name: str, place: int, about: dict[str, Any]) -> dict[str, Any]:
    own = [row for row in rows if row["problem"] == name]
    swatches = {label: look.swatch for label, look in training_looks(own).items()}
    entries = summary(own)
    data = {
        "id": f"training-{place}",
        "looks": swatches,
        "curves": curves(own),
        "metric": entries[0]["metric"],
        "tests": [{"contender": e["contender"], "values": e["tests"], **e["test"]} for e in entries if e["test"]],
    }
    return {
        "name": name,
        "about": about,
        "notes": [f"Source: {about['source']}".rstrip(".") + "."] if about.get("source") else [],
        "id": f"training-{place}",
        "summary": [entry | {"swatch": swatches[entry["contender"]]} for entry in entries],
        "failures": [row for row in own if row["status"] != "ok"],
        "data": data,
    }
