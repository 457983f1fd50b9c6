import functools
import pickle
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from decay_adapter import Decay, Exact, problem
from torch import nn

from pynode.errors import StudyError
from pynode.study import Contender, Setting, Study
from pynode.study.content import digest


def scaled(factor):
    return lambda t, z: factor * z


class Twice(nn.Module):
    factor = 2

    def forward(self, t, z):
        return self.factor * z


class Thrice(Twice):
    factor = 3


def test_equal_things_have_one_digest_and_others_another():
    def first(t, z):
        return z + 1

    def second(t, z):
        return z + 2

    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    other = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    other.load_state_dict(net.state_dict())
    things = [
        *(1, 1.0, "1", True, None, b"1", (1,), [1], {1: 1}, {1}),
        *(torch.ones(2), torch.ones(2, dtype=torch.float64), torch.ones(2, 1), torch.tensor([1.0, 2.0])),
        *(torch.ones(2, requires_grad=True), np.ones(2), np.ones(2, dtype=np.float32)),
        *(first, second, scaled(1.0), scaled(2.0), functools.partial(first, 1), functools.partial(first, 2)),
        *(Twice(), Thrice(), Twice().eval(), Decay(), net, other, net.forward, Twice, Setting(1e-3), Setting(1e-4)),
    ]
    digests = [digest(x) for x in things]
    assert len(set(digests)) == len(things)
    assert digests == [digest(x) for x in things]
    assert digest(scaled(2.0)) == digest(scaled(2.0))
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-6
    assert digest(net) not in digests


FILE = """
import abc, collections, dataclasses, enum, functools, itertools, logging, re, threading, types, typing, weakref
import numpy as np, torch
from torch import nn
import {helper}
from {helper} import scaled

VALUE = {value}
LOG, LOCK, PATTERN = logging.getLogger(__name__), threading.Lock(), re.compile("a+")

class Kind(enum.Enum):
    ONE = 1

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z * z

class Base(abc.ABC):
    constant = {constant}

    @abc.abstractmethod
    def rate(self): ...

class Field(nn.Module, Base):
    class Constants:
        constant = {nested}

    def __init__(self):
        super().__init__()
        self.k, self.lstm = 2.0, nn.LSTM(1, 1)
        self.value = VALUE
        for p in self.parameters():
            nn.init.ones_(p)

    @functools.cached_property
    def late(self):
        return Square, Kind.ONE, LOG, LOCK, PATTERN, weakref.ref(Kind)

    def rate(self):
        return self.k

    def forward(self, t, z):
        return self.k * VALUE * z, scaled(z), {helper}.RATE, {helper}.CONSTANTS["a"], np.sin(z)
"""
HELPER = """
RATE = {rate}
CONSTANTS = dict(a=1.0)
def scaled(z):
    return z * {factor}
"""
NUMBERS = {"value": "1.0", "constant": "1.0", "nested": "1.0", "rate": "1.0", "factor": "1.0", "more": ""}


@pytest.fixture
def field(monkeypatch):
    """The field of two files, with other numbers and words in them."""

    def made(**changes):
        numbers = {**NUMBERS, **changes, "helper": "helper_of_content"}
        for name, text in (("helper_of_content", HELPER), ("file_of_content", FILE + "{more}")):
            module = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            exec(text.format_map(numbers), vars(module))
        return sys.modules["file_of_content"].Field

    return made


@pytest.mark.parametrize("where", ["value", "constant"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1.0", "2.0"),
        ("(1.0, 2.0)", "(1.0, 3.0)"),
        ("[1.0, [2.0]]", "[1.0, [3.0]]"),
        ("dict(a=1.0)", "dict(a=2.0)"),
        ("{1.0}", "{2.0}"),
        ("frozenset({1.0})", "frozenset({2.0})"),
        ("range(3)", "range(4)"),
        ("torch.tensor(1.0)", "torch.tensor(2.0)"),
        ("torch.eye(2).to_sparse()", "2 * torch.eye(2).to_sparse()"),
        ("np.float32(1)", "np.float32(2)"),
        ("np.array(1.0)", "np.array(2.0)"),
        ("np.array([1, None])", "np.array([2, None])"),
        ("np.ma.masked_array([1, 2], [0, 1])", "np.ma.masked_array([1, 2], [0, 0])"),
        ("types.SimpleNamespace(k=1.0)", "types.SimpleNamespace(k=2.0)"),
        ("collections.deque([1.0])", "collections.deque([2.0])"),
        ("functools.partial(torch.mul, other=1.0)", "functools.partial(torch.mul, other=2.0)"),
        ("torch.sin", "torch.cos"),
        ("nn.functional.silu", "nn.functional.gelu"),
        ("np.sin", "np.cos"),
        ("torch.func.vmap(torch.mm, 0)", "torch.func.vmap(torch.mm, 1)"),
        ("functools.cache(lambda z: 1.0 * z)", "functools.cache(lambda z: 2.0 * z)"),
        ("torch.compile(lambda z: 1.0 * z)", "torch.compile(lambda z: 2.0 * z)"),
        ("nn.Tanh()", "nn.Sigmoid()"),
        ("nn.Linear(1, 1).requires_grad_(False)", "nn.Linear(2, 1).requires_grad_(False)"),
        ("nn.PReLU(init=0.1)", "nn.PReLU(init=0.2)"),
        ("type('K', (), dict(k=1.0))", "type('K', (), dict(k=2.0))"),
        ("dataclasses.make_dataclass('D', ['k'])(1.0)", "dataclasses.make_dataclass('D', ['k'])(2.0)"),
        ("type('S', (), dict(__slots__='k', __init__=lambda s: setattr(s, 'k', 1.0)))()",
         "type('S', (), dict(__slots__='k', __init__=lambda s: setattr(s, 'k', 2.0)))()"),
    ],
)  # fmt: skip
def test_a_number_that_changes_changes_the_digest(field, where, before, after):
    torch.manual_seed(0)
    one = digest(field(**{where: before}))
    torch.manual_seed(0)
    assert digest(field(**{where: before})) == one
    torch.manual_seed(0)
    assert digest(field(**{where: after})) != one


@pytest.mark.parametrize("change", ["nested", "rate", "factor"])
def test_numbers_of_a_class_within_and_of_another_file_count(field, change):
    assert digest(field(**{change: "2.0"})) != digest(field())


@pytest.mark.parametrize("how", ["import {0}; return {0}.f(z)", "from {0} import f; return f(z)", "return use({0}, z)"])
def test_modules_that_a_function_imports_itself_or_passes_on_count(tmp_path, monkeypatch, how):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "passed_on", raising=False)  # of another folder
    (tmp_path / "passed_on.py").write_text("def f(z):\n    return z\n")
    (tmp_path / "imported_late.py").write_text("def f(z):\n    return z\n")
    name, within = "passed_on" if "use" in how else "imported_late", {"__name__": "file_of_content"}
    exec(f"import passed_on\ndef field(t, z):\n    {how.format(name)}", within)
    function = within["field"]
    before = digest(function)
    assert digest(function) == before
    (tmp_path / f"{name}.py").write_text("def f(z):\n    return 2 * z\n")
    assert digest(function) != before
    assert "imported_late" not in sys.modules  # it is looked at, and not run


@pytest.mark.parametrize("more", ["k = 3.0", "late = [1]", "z = 7", "def scale(z): return z", "K = open"])
def test_names_of_attributes_and_what_is_not_used_do_not_count(field, more):
    """`self.k` is not the global `k`, which a script's own loop may have and the process of a cell has not."""
    assert digest(field(more=more)) == digest(field())


def test_hooks_of_modules_count():
    def hooked(factor):
        found = nn.Identity()
        found.register_forward_hook(lambda module, z, out: factor * out)
        return digest(found)

    assert len({digest(nn.Identity()), hooked(1.0), hooked(2.0)}) == 3
    assert hooked(1.0) == hooked(1.0)  # though it has another number in PyTorch's count


def test_a_digest_does_not_depend_on_what_shares_a_part(field):
    """What is sent to the process of a cell no longer is the file's own."""
    found = field(value="torch.ones(2)")()
    assert found.value is sys.modules["file_of_content"].VALUE
    before = digest(found)
    assert digest(pickle.loads(pickle.dumps(found))) == before
    assert found.late
    assert digest(found) == before  # what is computed when it is asked for


def test_what_has_itself_as_a_part_has_a_digest():
    def cyclic(x):
        found = [x]
        found.append(found)
        return found

    assert digest(cyclic(1)) == digest(cyclic(1)) != digest(cyclic(2))


def test_what_cannot_be_told_is_refused(field):
    with pytest.raises(StudyError, match=r"file_of_content.Field.* an object of builtins.generator, .* be told"):
        digest(field(value="(i for i in range(3))"))


@pytest.mark.slow
def test_a_digest_does_not_depend_on_the_process(tmp_path):
    value = (
        "dict(s={'a', 'b', 'c', 3, (1, 'd')}, f=frozenset('efgh'), t=torch.tensor(1.0), n=np.float32(1), l=nn.Tanh())"
    )
    (tmp_path / "file_of_digest.py").write_text(
        FILE.format_map({**NUMBERS, "value": value, "helper": "other_of_digest"})
    )
    (tmp_path / "other_of_digest.py").write_text(HELPER.format_map(NUMBERS))
    code = """
from decay_adapter import problem
from file_of_digest import Field
from pynode.study.content import digest
from pynode.study.library import problem as of_library
print(problem().content, of_library("lotka_volterra").content, digest(Field()))
"""
    found = set()
    for seed in ("7", "8"):
        path = ":".join([*sys.path, str(tmp_path)])
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": path, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        found.add(done.stdout)
    (printed,) = found
    assert printed.split()[0] == problem().content


def test_a_field_that_is_trained_on_is_another_problem():
    whole = problem()
    study = Study("s", [whole], [Contender(Exact)])
    before = {cell.key for cell in study.cells()}
    with torch.no_grad():
        whole.field.rate += 1
    assert not before & {cell.key for cell in study.cells()}


@pytest.mark.parametrize("change", [{"name": "x"}, {"loss": torch.sum}, {"stiff": True}, {"reference": None}])
def test_what_changes_the_content_of_a_problem(change):
    whole = problem()
    assert replace(whole).content == whole.content
    assert replace(whole, description="told at length", settings=(Setting(1e-9),)).content == whole.content
    assert replace(whole, **change).content != whole.content
