"""A comparison as an HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pynode.study.comparison.words import by_contender, caveats, headline, sentence
from pynode.study.reporting.page import render

if TYPE_CHECKING:
    from pynode.study.comparison import Comparison
    from pynode.study.comparison.verdict import Verdict

__all__ = ["page"]


def page(comparison: Comparison) -> str:
    """The page: what is said in words, the ratios of all measurements drawn and in a table."""
    c = comparison
    problems = list(dict.fromkeys(v.pair.problem for v in c.verdicts))
    sections = [{"name": name, "id": f"problem-{place}"} for place, name in enumerate(problems)]
    data = {
        "comparison": [
            {"id": section["id"], "rows": [_row(v) for v in c.verdicts if v.pair.problem == section["name"]]}
            for section in sections
        ]
    }
    lists = [
        {"title": title, "sentences": [sentence(v, title) for v in verdicts]}
        for title, verdicts in (("Worse", c.worse), ("Slower", c.slower), ("Faster", c.faster), ("Better", c.better))
    ]
    return render(
        "comparison.html",
        data=data,
        title=f"{c.a} → {c.b}",
        comparison=c,
        headline=headline(c),
        lists=lists,
        means=by_contender(c),
        caveats=caveats(c),
        sections=sections,
        percent=f"{c.confidence:.0%}",
    )


def _row(verdict: Verdict) -> dict[str, Any]:
    pair, time = verdict.pair, verdict.time
    return {
        "contender": pair.contender,
        "setting": pair.setting,
        "measure": pair.measure,
        "time": [time.value, time.low, time.high] if time else [None, None, None],
        "error": verdict.error,
        "nfe": verdict.nfe,
        "speed": verdict.speed,
        "note": "; ".join(filter(None, (verdict.worse, verdict.better))),
        "worse": bool(verdict.worse),
    }
