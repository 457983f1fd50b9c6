import pytest
from decay_adapter import Exact, problem

from pynode.errors import InputError
from pynode.study import Contender, Setting, Study
from pynode.study.defaults import default_contenders, quick_contenders

TOML = """
name = "growth and decay"
measures = ["gradient"]
repeats = 3
problems = ["fields.py:made", "fields.py:one", {{ name = "fields.py:made", batch = 2, rtol = [1e-4] }}]

[[contenders]]
package = "{package}"
behave = ["ok", "nan"]
dt = 0.5

[[contenders]]
package = "decay_adapter:Exact"
label = "mine"
"""
FIELDS = """
import decay_adapter

def made(batch=3):
    return decay_adapter.problem(f"decay {batch}", batch)

one = decay_adapter.problem("one")
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "fields.py").write_text(FIELDS)
    (tmp_path / "study.toml").write_text(TOML.format(package="decay_adapter:Exact"))
    return tmp_path / "study.toml"


def test_a_study_of_a_toml_file(file):
    file.write_text(file.read_text().replace('"fields.py:made", "fields.py:one"', '"fields.py:one"'))
    study = Study.from_toml(file)
    assert (study.name, study.measures, study.repeats) == ("growth and decay", ("state", "gradient"), 3)
    assert [p.name for p in study.resolved()] == ["one", "decay 2"]
    assert study.resolved()[1].settings == (Setting(1e-4),)
    assert study.contenders == [
        *Contender.grid(Exact, settings=[Setting(dt=0.5)], behave=["ok", "nan"]),
        Contender(Exact, label="mine"),
    ]
    assert len(study.cells()) == 2 * 2 + 2 + 1


def test_paths_of_files_are_in_full_and_other_texts_are_as_they_were(file):
    (file.parent / "own.py").write_text("from decay_adapter import Exact\n")
    file.write_text(
        """
        problems = ["fields.py:one", { name = "fields.py:made" }]
        contenders = ["own.py:Exact", { package = "own.py:Exact", behave = "model.py:new", label = "model.py:newer" }]
        """
    )
    study = Study.from_toml(file)
    first, second = study.contenders
    assert first.package == second.package == f"{file.resolve().parent / 'own.py'}:Exact"
    assert (second.label, second.options) == ("model.py:newer", {"behave": "model.py:new"})
    assert [p.name for p in study.resolved()] == ["one", "decay 3"]


def test_contenders_come_back_from_data():
    contenders = [*Contender.grid(Exact, settings=[Setting(1e-2, 1e-3)], scale=[1.0, 2]), Contender(Exact)]
    study = Study("s", ["lotka_volterra", "van_der_pol"], contenders, measures=["memory"], passes=2, budget=1, seed=5)
    again = Study.from_dict(study.to_dict())
    assert again == study
    assert again.to_dict() == study.to_dict()


def test_problems_of_python_are_described_and_not_made():
    data = Study("s", [problem(description="it decays")], [Contender(Exact)]).to_dict()
    assert data["problems"] == [
        {"kind": "solve", "name": "decay", "description": "it decays", "source": "", "content": problem().content}
    ]
    with pytest.raises(InputError, match="was an object of Python's"):
        Study.from_dict(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("repeats", "repeat"), "unknown key of a study 'repeat': expected one of 'repeats'"),
        (("measures = [", "measures = 3 # ["), "measures must be a list"),
        (("repeats = 3", "repeats = 0"), "repeats must be a positive int"),
        (("repeats = 3", "repeats = "), "no TOML"),
        (("fields.py:one", "fields.py:two"), "has no 'two' for the problem"),
        (("fields.py:one", "field.py:one"), "there is no file"),
        (("batch = 2", "batches = 2"), "does not take the options"),
        (("rtol = [1e-4]", "rtol = [1e-4], dt = 1.0"), "tolerances or steps"),
        (("rtol = [1e-4]", "atol = [1e-4]"), "atol goes with rtol"),
        (("rtol = [1e-4]", "rtol = [-1e-4]"), "rtol must be positive"),
        (("package = ", "pakage = "), "a contender is a table with a package"),
        (("decay_adapter:Exact", "decay_adapter:Inexact"), "has no 'Inexact'"),
        (("decay_adapter:Exact", "no_such_module:Exact"), "there is no module no_such_module"),
        (('label = "mine"', 'label = "mine"\nbehave = ["ok", "nan"]'), "is for one contender"),
        (('label = "mine"', 'label = "Exact ok"'), "Exact ok more than once"),
        ((', { name = "fields.py:made"', ', "fields.py:made", { name = "fields.py:made"'), "decay 3 more than once"),
        (('label = "mine"', 'behave = [[1]]'), "texts, numbers and truth values"),
        (("rtol = [1e-4]", "rtol = []"), "rtol must be a number, or a list of at least one, got \\[\\]. Leave it out"),
        (("rtol = [1e-4]", "atol = []"), "atol must be a number, or a list of at least one"),
        (("dt = 0.5", "dt = []"), "dt must be a number, or a list of at least one"),
        (("dt = 0.5", "rtol = true"), "rtol must be a positive number, got True. Pass e.g."),
        (("dt = 0.5", 'rtol = "1e-3"'), "rtol must be a positive number, got '1e-3'. Pass e.g."),
        (('label = "mine"', "label = 3"), "the label of a contender must be a text, got 3. Pass e.g."),
        (('label = "mine"', "label = false"), "the label of a contender must be a text, got False"),
        (("repeats = 3", 'seed = "x"'), "seed must be an int of at most 64 bits, got 'x'. Pass e.g."),
        (("repeats = 3", "seed = 1.5"), "seed must be an int of at most 64 bits, got 1.5"),
        (("repeats = 3", "seed = true"), "seed must be an int of at most 64 bits, got True"),
        (("repeats = 3", "seed = 99999999999999999999"), "seed must be an int of at most 64 bits"),
        (("repeats = 3", "threads = true"), "threads must be a positive int, got True. Pass e.g."),
        (("repeats = 3", "passes = true"), "passes must be a positive int, got True"),
        (("repeats = 3", "budget = true"), "budget must be a positive number, got True"),
        (("repeats = 3", 'time_limit = "9"'), "time_limit must be a positive number, got '9'"),
        (('{ name = "fields.py:made"', '{ name = "van_der_pol", mu = "x" }, { name = "fields.py:made"'),
         "mu of the problem 'van_der_pol' must be a finite number, got 'x'. Pass e.g."),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_said(file, change, says):
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change))
    with pytest.raises(InputError, match=says):
        Study.from_toml(file).cells()


def test_contenders_by_choice():
    for name, chosen in (("default", default_contenders), ("quick", quick_contenders)):
        study = Study.from_dict({"name": "s", "problems": ["lorenz"], "contenders": name})
        assert study.contenders is chosen
        assert study.to_dict()["contenders"] == name
        assert len(chosen(problem())) > 3
    many = problem(settings=tuple(Setting(10.0**-i) for i in range(1, 6)))
    assert len(quick_contenders(many)) < len(default_contenders(many))
    assert {c.settings for c in quick_contenders(many)} == {many.settings[:3]}
    with pytest.raises(InputError, match="expected one of 'quick'"):
        Study.from_dict({"name": "s", "problems": ["lorenz"], "contenders": "quik"})


def test_no_file():
    with pytest.raises(InputError, match="there is no file"):
        Study.from_toml("nowhere.toml")
