"""Two studies beside each other: ratios with intervals, and what is said of them."""

import math
import random

import made_rows
import numpy as np
import pytest

from pynode.errors import InputError
from pynode.study.comparison import compare
from pynode.study.comparison.ratio import Ratio, ratio

TSIT5 = ("pynode", {"engine": "torch", "solver": "tsit5"})


def calls(rng, usual, passes, between, within=0.03, n=10):
    """Times of processes that differ from each other, of calls that differ within."""
    return [list(usual * math.exp(rng.normal(0, between)) * np.exp(rng.normal(0, within, n))) for _ in range(passes)]


@pytest.mark.parametrize(("passes", "between"), [(3, 0.05), (2, 0.02), (5, 0.0)])
def test_intervals_cover_the_ratio(passes, between):
    rng = np.random.default_rng(7)
    n, inside, widths = 200, 0, []
    for seed in range(n):
        found = ratio(calls(rng, 1.0, passes, between), calls(rng, 1.25, passes, between), 0.9, seed)
        inside += found.low <= 1.25 <= found.high
        widths.append(math.log(found.high / found.low))
    assert inside / n >= 0.84  # 0.9 with three standard errors of 200 draws off
    # and are no wider than they need to be: Student's quantile of two means' spread, with some for the floor
    spread = math.hypot(between, 1.25 * 0.03 / math.sqrt(10)) * math.sqrt(2 / passes)
    quantile = {4: 2.13, 2: 2.92, 8: 1.86}[2 * passes - 2]
    assert np.mean(widths) < 1.5 * 2 * quantile * spread


def test_intervals_of_single_passes_cover_what_differs_within():
    rng = np.random.default_rng(3)
    n, inside = 200, 0
    for seed in range(n):
        found = ratio(calls(rng, 1.0, 1, 0.0, n=20), calls(rng, 1.25, 1, 0.0, n=20), 0.9, seed)
        inside += found.low <= 1.25 <= found.high
        assert found.freedom == math.inf
    assert inside / n >= 0.84


def test_what_is_not_known_has_no_interval():
    assert ratio([], [[1.0]]) is None
    assert ratio([[0.0, 1.0]], [[1.0]]) is None
    single = ratio([[1.0]], [[3.0]])  # one call each: nothing is known of the spread
    assert (single.value, single.low, single.high) == (pytest.approx(3.0), 0.0, math.inf)
    assert min(single.doubt(1.05)) > 0.4
    sure = Ratio(2.0, 2.0, 2.0, 0.0, 4)
    assert sure.doubt(1.05) == (1.0, 0.0)


def studies(scale=lambda contender: 1.0, passes=3, changes=(), **source):
    """A study and one after it, some of whose rows are changed."""
    a, b = (made_rows.study_rows(seed, passes, (1e-3, 1e-6)) for seed in (11, 12))
    b = made_rows.study_rows(12, passes, (1e-3, 1e-6), scale)
    for where, change in changes:
        b = [change(row) if all(row[k] == v for k, v in where.items()) else row for row in b]
    return made_rows.source(a, name="before"), made_rows.source(b, name="after", **source)


def test_no_change_gives_no_claim():
    for passes in (1, 3):
        found = compare(*studies(passes=passes))
        assert [*found.faster, *found.slower, *found.worse, *found.better] == []
        assert len(found.verdicts) == 2 * len(made_rows.CONTENDERS) * 2 * 2 * 1.0
        assert "No difference is shown." in str(found)
        known = [v.time for v in found.verdicts if v.time]
        if passes == 3:
            assert np.mean([t.low <= 1 <= t.high for t in known]) > 0.9
            assert not found.only_a
            assert found.changed == []


def test_what_is_slower_and_faster_is_told():
    scales = {"scipy RK45": 1.3, "diffeqpy Vern9": 0.7, "scipy DOP853": 1.04}
    found = compare(*studies(lambda contender: scales.get(contender, 1.0)))
    assert {v.pair.contender for v in found.slower} == {"scipy RK45"}
    assert len(found.slower) == 4
    assert {(v.pair.contender, v.pair.measure) for v in found.faster} == {
        ("diffeqpy Vern9", "state"),
        ("diffeqpy Vern9", "gradient"),
    }
    for verdict in found.slower:
        assert verdict.time.low > 1.05
        assert verdict.time.value == pytest.approx(1.3, rel=0.1)
    text = str(found)
    assert "Slower (4):\n  lotka_volterra, scipy RK45 (rtol 1e-3), state: 1." in text
    frame = found.frame()
    slow = frame[frame["speed"] == "slower"]
    assert set(slow["contender"]) == {"scipy RK45"}
    assert list(frame["time_low"] <= frame["time_high"]) == [not math.isnan(x) for x in frame["time_low"]]


def test_single_passes_tell_of_large_differences_alone():
    found = compare(*studies(lambda c: {"scipy RK45": 1.15, "scipy DOP853": 1.5}.get(c, 1.0), passes=1))
    assert {v.pair.contender for v in found.slower} == {"scipy DOP853"}
    assert "have a single pass on both sides" in str(found)


def test_new_failures_and_errors_are_worse():
    coarse = {"problem": "lotka_volterra", "contender": "scipy RK45", "rtol": 1e-6}
    fails = {"problem": "lotka_volterra", "contender": "diffrax Tsit5", "rtol": 1e-3, "pass": 1}
    back = {"problem": "lotka_volterra", "contender": "torchode Tsit5", "rtol": 1e-3}
    found = compare(
        *studies(
            changes=[
                (coarse, lambda row: row | {"error_trajectory": 4 * row["error_trajectory"]}),
                (fails, lambda row: made_rows.failed(row, "crashed", "signal 11")),
                (back, lambda row: made_rows.failed(row, "not_finite", "NaN", "gradient")),
            ]
        )
    )
    told = {(v.pair.contender, v.pair.measure): v.worse for v in found.worse}
    assert told == {
        ("scipy RK45", "state"): "its error is 4 times that of before",
        ("diffrax Tsit5", "state"): "it fails now in 1 of 3 passes: crashed (signal 11)",
        ("diffrax Tsit5", "gradient"): "it fails now in 1 of 3 passes: crashed (signal 11)",
        ("torchode Tsit5", "gradient"): "it fails now in 3 of 3 passes: not_finite (NaN)",
    }
    a, b = studies(changes=[(back, lambda row: made_rows.failed(row, "failed", "oh"))])
    assert {v.better for v in compare(b, a).better} == {"it failed before in 3 of 3 passes: failed (oh)"}


def test_who_is_not_there_any_more_is_not_worse():
    gone = {"contender": "diffrax Tsit5"}
    a, b = studies(changes=[(gone, lambda row: made_rows.failed(row, "not_comparable", "diffrax is not installed"))])
    found = compare(a, b)
    assert not found.worse
    b["rows"] = [row for row in b["rows"] if row["contender"] != "scipy RK45"]
    b["rows"].append(made_rows.row("kepler", *TSIT5, rtol=1e-3))
    found = compare(a, b)
    assert found.only_a == [
        f"scipy RK45 on {problem} (rtol {rtol})"
        for problem in ("lotka_volterra", "van_der_pol")
        for rtol in ("1e-3", "1e-6")
    ]
    assert found.only_b == ["pynode torch tsit5 on kepler (rtol 1e-3)"]
    assert "Only in a, before (4):" in str(found)


def test_a_slower_machine_makes_no_claim():
    a, b = studies(lambda contender: 2.0 if contender == "scipy RK45" else 1.4)
    for row in b["rows"]:
        row["calibration"] *= 1.4
    found = compare(a, b)
    assert found.machine == pytest.approx(1.4, rel=0.02)
    assert {v.pair.contender for v in found.slower} == {"scipy RK45"}
    assert "A fixed workload took 1.4" in str(found)


def test_differing_environments_are_told():
    facts = made_rows.ENVIRONMENT | {
        "revision": "abc",
        "packages": {**made_rows.ENVIRONMENT["packages"], "torch": "2.11"},
    }
    a, b = studies(environments={"e1": facts})
    for row in b["rows"]:
        row["threads"] = 2
    found = compare(a, b)
    assert sorted(found.changed) == [
        ("revision", "f5853e3", "abc"),
        ("threads", "1", "2"),
        ("torch", "2.10.0", "2.11"),
    ]
    assert not found.only_a  # another number of threads is another study of the same cells
    assert "torch: 2.10.0 at a, 2.11 at b." in str(found)


def test_problems_of_one_name_that_are_not_the_same_are_told():
    a, b = studies()
    for source, digests in ((a, ("1a" * 32, "3c" * 32)), (b, ("2b" * 32, "3c" * 32))):
        names = ("lotka_volterra", "van_der_pol")
        source["problems"] = {n: {**made_rows.PROBLEMS[n], "content": d} for n, d in zip(names, digests, strict=True)}
    found = compare(a, b)
    assert found.changed == [("digest of the problem lotka_volterra", "1a" * 6, "2b" * 6)]
    assert f"digest of the problem lotka_volterra: {'1a' * 6} at a, {'2b' * 6} at b." in str(found)
    b["problems"] = made_rows.PROBLEMS  # of an earlier pynode
    assert compare(a, b).changed == []


def test_trainings_are_compared_over_seeds():
    a = made_rows.training_rows(seeds=5, steps=60, epochs=2)
    b = made_rows.training_rows(seeds=5, steps=60, epochs=2)
    rng = random.Random(0)
    for row in b:
        if row["contender"] == "NODE discrete":
            row["test_error"] = 2 * row["test_error"] + 0.001 * rng.random()
        row["curves"]["seconds"] = [t * rng.uniform(1.48, 1.52) for t in row["curves"]["seconds"]]
    found = compare(made_rows.source(a), made_rows.source(b))
    assert [(v.pair.contender, v.pair.measure) for v in found.worse] == [("NODE discrete", "training")]
    assert len(found.slower) == 4
    assert found.slower[0].time.value == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize("infinite", [1, 5])
def test_infinite_errors_of_trainings_are_worse(infinite):
    a, b, huge = (made_rows.training_rows(seeds=5, steps=60, epochs=2) for _ in range(3))
    for row in b:
        if row["contender"] == "NODE discrete" and row["seed"] < infinite:
            row["test_error"] = math.inf
    label = ("NODE discrete", "training")
    worse, better = compare(made_rows.source(a), made_rows.source(b)), compare(made_rows.source(b), made_rows.source(a))
    told = [label] if infinite == 5 else []  # the median of the seeds is what is told
    assert [(v.pair.contender, v.pair.measure) for v in worse.worse] == told
    assert [(v.pair.contender, v.pair.measure) for v in better.better] == told
    assert not worse.better
    assert not better.worse
    both = compare(made_rows.source(b), made_rows.source(b))
    assert not both.worse
    assert not both.better
    for i, row in enumerate(huge):
        row["test_error"] = 1e200 * (1 + i)  # whose variance is beyond all floats
    assert not compare(made_rows.source(a), made_rows.source(huge)).better


def test_page_of_a_comparison(tmp_path):
    pytest.importorskip("jinja2", reason="the extra `study` is not installed")
    pytest.importorskip("plotly", reason="the extra `study` is not installed")
    evil = "<img src=x onerror=alert(1)>"
    a, b = studies(lambda contender: 2.0 if contender == "scipy RK45" else 1.0)
    for row in a["rows"] + b["rows"]:
        row["contender"] = evil + row["contender"]
    path = compare(a, b).write(tmp_path / "deep" / "diff.html")
    text = path.read_text(encoding="utf-8")
    assert evil not in text
    assert "&lt;img src=x onerror=alert(1)&gt;scipy RK45 (rtol 1e-3), state: 1.9" in text or "state: 2.0" in text
    assert path.stat().st_size < 5_000_000


@pytest.mark.parametrize("options", [{"least": 0.9}, {"error_factor": 1.0}, {"confidence": 95}])
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        compare(*studies(), **options)
