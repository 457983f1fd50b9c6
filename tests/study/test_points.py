"""The numbers of a report: passes, Pareto front, recommendation, what is said of fairness."""

import itertools
import math
import random
import statistics

import made_rows
import pytest

from pynode.errors import StudyError
from pynode.study.reporting.failures import STATUSES, absent, failures
from pynode.study.reporting.fairness import remarks
from pynode.study.reporting.front import advise, asked, fastest, front, usual
from pynode.study.reporting.measures import MEASURES, accuracy, work
from pynode.study.reporting.points import disturbed, points, quartiles, setting_text
from pynode.study.reporting.provenance import provenance
from pynode.study.reporting.source import load
from pynode.study.reporting.style import MARKERS, looks, training_looks
from pynode.study.reporting.training import curves, summary
from pynode.study.reporting.units import brief, day, plus_minus, scientific, seconds, slug

STATE, GRADIENT = MEASURES
TSIT5 = ("pynode", {"engine": "torch", "solver": "tsit5"})


def point(contender, error, median, quarter=0.0, **changes):
    """A point with an error and a time whose quartiles are `quarter` of it away."""
    times = {"seconds": median, "seconds_q1": median * (1 - quarter), "seconds_q3": median * (1 + quarter)}
    fixed = {"status": "ok", "setting": "rtol 1e-6", "disturbed": 0, "beside": 0}
    return {"contender": contender, "error_trajectory": error, **times, **fixed} | changes


def test_passes_are_pooled():
    rows = [made_rows.row("p", *TSIT5, rtol=1e-6, number=k, rng=random.Random(k)) for k in range(3)]
    rows[2] = made_rows.failed(rows[2], "timeout", "took over 300 s")
    (found,) = points(rows)
    calls = rows[0]["seconds_all"] + rows[1]["seconds_all"]
    assert found["seconds"] == statistics.median(calls)
    assert (found["seconds_q1"], found["seconds_q3"]) == pytest.approx(
        (statistics.quantiles(calls, method="inclusive")[0], statistics.quantiles(calls, method="inclusive")[2])
    )
    assert (found["passes"], found["passes_ok"], found["status"]) == (3, 2, "ok")
    assert found["seconds_first"] == statistics.median(r["seconds_first"] for r in rows[:2])
    (failure,) = failures(rows)
    assert (failure.status, failure.times, failure.of, failure.measure) == ("timeout", 1, 3, "state")


def test_a_gradient_that_one_pass_has_counts():
    rows = [made_rows.row("p", *TSIT5, rtol=1e-6, number=k, rng=random.Random(k)) for k in range(2)]
    rows[0] = made_rows.failed(rows[0], "timeout", "took over 300 s", "gradient")
    (found,) = points(rows)
    assert (found["passes_ok"], found["gradient_passes_ok"], found["gradient_status"]) == (2, 1, "ok")
    assert found["gradient_seconds"] == statistics.median(rows[1]["gradient_seconds_all"])
    assert (found["seconds_n"], found["gradient_seconds_n"]) == (20, 10)


def test_quartiles_are_those_of_a_sample():
    assert quartiles([4, 1, 3, 2, 5]) == (2, 3, 4)
    assert quartiles([7]) == (7, 7, 7)


def test_contenders_with_several_threads_are_told_apart():
    rows = [made_rows.row("p", *TSIT5, rtol=1e-6, threads=n) for n in (1, 4)]
    rows.append(made_rows.row("p", "scipy", {"solver": "RK45"}, rtol=1e-6))
    assert [p["contender"] for p in points(rows)] == [
        "pynode torch tsit5 (1 threads)",
        "pynode torch tsit5 (4 threads)",
        "scipy RK45",
    ]


def test_front_is_what_nothing_beats():
    rng = random.Random(1)
    made = [point(str(i), 10 ** rng.uniform(-8, -2), 10 ** rng.uniform(-4, 0)) for i in range(60)]
    made += [point("failed", 1e-12, 1e-6, status="failed"), point("unknown", 1e-12, math.nan)]
    found = front(made, STATE, "error_trajectory", "seconds")

    def beaten(i):
        mine = (work(made[i], STATE, "seconds"), accuracy(made[i], STATE, "error_trajectory"))
        return any(
            work(p, STATE, "seconds") <= mine[0]
            and accuracy(p, STATE, "error_trajectory") <= mine[1]
            and p is not made[i]
            for p in made
        )

    assert set(found) == {i for i in range(60) if not beaten(i)}
    times = [made[i]["seconds"] for i in found]
    assert times == sorted(times)
    assert 2 < len(found) < 30


def test_recommends_the_fastest_at_the_error_asked():
    made = [
        point("slow", 1e-9, 3.0, 0.01),
        point("coarse", 1e-3, 0.1),
        point("fast", 5e-7, 1.0, 0.01),
        point("fast", 1e-9, 2.0),  # finer than need be
    ]
    advice = advise(made, STATE, "error_trajectory", 1e-6)
    assert (advice.winner, advice.ties) == (2, ())
    assert advice.sentence == (
        "For an error over the trajectory of at most 10⁻⁶, fast (rtol 1e-6) is the fastest: 1 s (quartiles 990 ms to "
        "1.01 s), with an error of 5.0×10⁻⁷. Next is slow (rtol 1e-6), at 3 times the cost."
    )
    assert advise(made, STATE, "error_trajectory", 1e-2).winner == 1
    nobody = advise(made, STATE, "error_trajectory", 1e-10)
    assert nobody.winner is None
    assert nobody.sentence.endswith("10⁻¹⁰ there is no contender: the least that was reached is 10⁻⁹.")


def test_says_that_quartiles_overlap():
    made = [point("a", 1e-7, 1.0, 0.1), point("b", 1e-7, 1.15, 0.1), point("c", 1e-7, 2.0, 0.1)]
    advice = advise(made, STATE, "error_trajectory", 1e-6)
    assert (advice.winner, advice.ties) == (0, (1,))
    assert "It cannot be told apart from b (rtol 1e-6): their quartiles overlap. Then comes c" in advice.sentence
    alone = advise(made[:1], STATE, "error_trajectory", 1e-6)
    assert alone.sentence.endswith("No other contender reached it.")
    made[0]["seconds_n"] = 1
    assert "Only 1 call of it was timed: how its times spread is unknown. It cannot be told apart from b" in (
        advise(made, STATE, "error_trajectory", 1e-6).sentence
    )
    made[0] |= {"seconds_n": 10, "disturbed": 1}
    assert "unknown" not in advise(made, STATE, "error_trajectory", 1e-6).sentence
    assert "machine was disturbed" in advise(made, STATE, "error_trajectory", 1e-6).sentence


def test_fewest_evaluations_of_a_gradient_are_forward_and_backward():
    made = [
        {**point("a", 0, 1), "gradient_status": "ok", "gradient_error": 1e-7, "nfe": 10, "nfe_backward": 90},
        {**point("b", 0, 1), "gradient_status": "ok", "gradient_error": 1e-7, "nfe": 40, "nfe_backward": 40},
        {**point("c", 0, 1), "gradient_status": "ok", "gradient_error": 1e-7, "nfe": 5, "nfe_backward": None},
    ]
    advice = advise(made, GRADIENT, "gradient_error", 1e-6, "nfe")
    assert advice.winner == 1
    assert "b (rtol 1e-6) needs the fewest evaluations: 80 evaluations" in advice.sentence


def test_the_usual_error_is_reached_by_half():
    made = [point("a", 1e-9, 1), point("a", 1e-4, 1), point("b", 1e-6, 1), point("c", 1e-3, 1), point("d", 2e-5, 1)]
    assert asked(made, STATE, "error_trajectory") == [10.0**k for k in range(-3, -10, -1)]
    assert usual(made, STATE, "error_trajectory") == 1e-6
    assert len(fastest(made, STATE, "error_trajectory", 1e-6)) == 2
    assert usual([point("a", 0.0, 1, status="failed")], STATE, "error_trajectory") is None
    assert asked([point("exact", 0.0, 1)], STATE, "error_trajectory") == [1e-14]


def test_every_way_of_failing_has_its_words():
    rows = made_rows.study_rows(rtols=(1e-3, 1e-7, 1e-9))
    stiff = [r for r in rows if r["problem"] == "van_der_pol"]
    told = failures(stiff)
    assert {f.status for f in told} == set(STATUSES) - {"not_comparable"}
    assert {(f.contender, f.measure) for f in absent(stiff)} == {
        ("diffeqpy Vern9", "state"),  # and not its gradient again
        ("scipy DOP853", "gradient"),
        ("scipy RK45", "gradient"),
    }
    timeout = next(f for f in told if f.status == "timeout")
    assert (timeout.settings, timeout.reason) == (("rtol 1e-7", "rtol 1e-9"), "took over 300 s")


def test_fairness_tells_what_is_unequal():
    equal = [made_rows.row("p", *TSIT5, rtol=1e-6, number=k) for k in range(2)]
    assert [heading for heading, _ in remarks(load({"rows": equal}))] == ["Equal"]

    rows = [made_rows.row("p", *TSIT5, rtol=10.0**-k, rng=random.Random(k)) for k in range(3, 9)]
    rows[0] |= {"threads": 4}
    rows[1] |= {"dtype": "float32"}
    rows[2] |= {"beside": 3}
    rows[3]["calibration"] *= 1.2
    rows[4] |= {"environment": "e2"}
    rows[5] |= {"memory_reason": "no /proc here"}
    rows.append(made_rows.row("p", "scipy", {"solver": "RK45"}, rtol=1e-3, nfe=None))
    told = dict(remarks(load({"rows": rows, "problems": {"p": {"agreement": 1e-6}}})))
    assert set(told) == {
        *("Threads", "Precision", "Measured beside others", "Disturbed", "Environments", "One pass", "Settings"),
        *("Solvers", "Counts", "Memory", "References"),
    }
    assert told["Threads"] == (
        "Contenders did not have the same number of threads. 1 thread: pynode torch tsit5, scipy RK45; 4 threads: "
        "pynode torch tsit5."
    )
    assert "1 of 7 cells ran while up to 3 other cells did" in told["Measured beside others"]
    assert "pynode torch tsit5 on p (rtol 1e-6)" in told["Disturbed"]
    assert "pynode torch: tsit5; scipy: rk45" in told["Solvers"]


def test_calibrations_are_compared_within_an_environment():
    """A slower machine is no disturbed one."""
    rows = [
        made_rows.row("p", *TSIT5, rtol=1e-6, calibration=c, environment=e) for e, c in [("a", 1.0), ("b", 2.0)] * 3
    ]
    assert disturbed(rows) == set()
    rows[0]["calibration"] = 1.11
    assert disturbed(rows) == {id(rows[0])}


def test_provenance_has_every_fact():
    (found,) = provenance(load(made_rows.source(made_rows.study_rows(rtols=(1e-3,)))))
    facts = dict(found["facts"])
    assert facts["Processor"] == "Example CPU 9000 @ 2.1 GHz"
    assert facts["Git revision of pynode"] == "f5853e3"
    assert facts["Julia packages"] == "OrdinaryDiffEq 6.90.0, SciMLSensitivity 7.70.0"
    assert facts["Packages"].startswith("diffrax 0.7.0, torch 2.10.0")
    assert facts["Measured"] == "2026-03-01 10:00 UTC to 2026-03-01 10:00 UTC"


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_looks_are_distinct_and_legible():
    rows = made_rows.study_rows(rtols=(1e-3,))
    found = looks(rows)
    drawn = [(look.colour, look.marker, look.dash) for look in found.values()]
    assert len(set(drawn)) == len(made_rows.CONTENDERS)
    for look in [*found.values(), *training_looks(made_rows.training_rows(1, 5, 2)).values()]:
        assert 1.05 / (luminance(look.colour) + 0.05) >= 3
    by_package = {}
    for look in found.values():
        by_package.setdefault(look.family, set()).add(look.colour)
    assert all(not a & b for a, b in itertools.combinations(by_package.values(), 2))
    assert (
        found["diffrax Tsit5"].marker == found["torchode Tsit5"].marker == found["pynode julia tsit5 discrete"].marker
    )
    assert len({m.plotly for m in MARKERS}) == len({m.matplotlib for m in MARKERS}) == len(MARKERS)


def test_training_is_summed_up_over_seeds():
    rows = made_rows.training_rows(seeds=3, steps=1000, epochs=4)
    rows[1] = made_rows.failed(rows[1], "not_finite", "the loss is not finite") | {"curves": None, "test_error": None}
    first = next(entry for entry in summary(rows) if entry["contender"] == rows[0]["contender"])
    values = [rows[0]["test_error"], rows[2]["test_error"]]
    assert (first["finished"], first["seeds"], first["metric"]) == (2, 3, "cross-entropy")
    assert first["test"] == {"mean": statistics.fmean(values), "std": pytest.approx(statistics.stdev(values)), "n": 2}
    stopped = made_rows.failed(rows[1], "timeout", "took over 300 s") | {"seed": 9, "curves": {"loss": [9.0, 8.0]}}
    drawn = next(c for c in curves([*rows, stopped]) if c["contender"] == rows[0]["contender"])
    assert len(drawn["seeds"]) == 3  # of which one has an end before the others': the median is without it
    assert len(drawn["median"]["loss"]) <= 241
    expected = statistics.median(rows[k]["curves"]["loss"][-1] for k in (0, 2))
    assert drawn["median"]["loss"][-1] == pytest.approx(expected, rel=1e-4)
    assert drawn["seeds"][0]["seconds"][-1] == pytest.approx(rows[0]["curves"]["seconds"][-1], rel=1e-4)


def test_numbers_as_they_are_read():
    assert [seconds(v) for v in (2.5, 0.001, 1.5e-5, 3e-9, 1234.0, math.nan)] == [
        *("2.5 s", "1 ms", "15 µs", "3 ns", "1234 s", "")
    ]
    assert [scientific(v) for v in (3.14e-6, 1e-6, 0.0, 9.96e-4, 250)] == ["3.1×10⁻⁶", "10⁻⁶", "0", "10⁻³", "2.5×10²"]
    assert [brief(v) for v in (1e-6, 2.5e-7, 0.05, 0.1, 1e-3)] == ["1e-6", "2.5e-7", "0.05", "0.1", "1e-3"]
    assert [plus_minus(*v) for v in ((0.0420, 0.00614), (47960, 0), (12345.6, 78.9), (1.5, math.nan))] == [
        *("0.0420 ± 0.0061", "47960 ± 0", "12\u202f346 ± 79", "1.5")
    ]
    assert [slug(t) for t in ("Lotka–Volterra", "../../etc/passwd", "µ")] == ["lotka-volterra", "etc-passwd", "unnamed"]
    assert day(1772359200.0) == "2026-03-01 10:00 UTC"
    assert setting_text({"rtol": 1e-6, "atol": 1e-9}) == "rtol 1e-6"
    assert setting_text({"rtol": 1e-6, "atol": 1e-6}) == "rtol 1e-6, atol 1e-6"
    assert setting_text({"rtol": None, "dt": 0.01}) == "dt 0.01"


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match="there is no row to report of"):
        load({"rows": []})
    with pytest.raises(StudyError, match="a row of the study lacks contender, status: got the keys"):
        load({"rows": [{"problem": "p"}]})
