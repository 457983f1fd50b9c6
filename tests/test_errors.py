"""Bad input is refused before any solve, in words that say what was expected, what came and what to do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import FieldError, InputError, SolveError

Z0 = torch.ones(3, 2)
SPAN = [0.0, 1.0]


class Never(nn.Module):
    """A field that must not be evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, t: Tensor, z: Tensor, *args: Tensor) -> Tensor:
        raise AssertionError("evaluated")


def refused(match: str, z0: Any = Z0, t: Any = SPAN, *, kind: type[Exception] = InputError, **keywords: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        pynode.solve(keywords.pop("field", Never()), z0, t, **keywords)
    assert isinstance(caught.value, pynode.PyNODEError)


# ---- the state -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_dtype_of_the_state(dtype: torch.dtype) -> None:
    refused(
        rf"z0 must be of dtype torch.float32 or torch.float64, .*, got {dtype}\. Convert it",
        torch.ones(3, 2).to(dtype),
    )
    refused(rf"z0\[1\] must be of dtype .* got {dtype}", (Z0, torch.ones(3).to(dtype)))


def test_kind_of_the_state() -> None:
    refused(r"z0 must be a tensor, or a non-empty tuple, .* of tensors, got list of Tensor", [Z0, Z0])
    refused(r"got float\. Convert arrays and numbers with torch.as_tensor", 1.0)
    refused(r"got tuple of nothing", ())
    refused(r"got tuple of Tensor, float", (Z0, 1.0))


def test_shape_of_the_state() -> None:
    refused(r"z0 must not be empty, got shape \(3, 0\)", torch.ones(3, 0))
    refused(r"z0 must have one batch size: expected 3, as z0\[0\], got 0 in z0\[1\]", (Z0, torch.ones(0, 2)))


def test_tensors_of_a_tuple_state_share_dtype() -> None:
    refused(
        r"must share dtype and device: expected torch.float32 on cpu, as z0\[0\], got torch.float64", (Z0, Z0.double())
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_state_that_is_not_finite(bad: float) -> None:
    z0 = torch.ones(3, 2)
    z0[1, 1] = bad
    refused(rf"z0 must be finite, got 1 of 6 entries infinite or NaN, the first of them {bad}\. Look at", z0)
    refused(r"z0\[1\] must be finite", (Z0, z0))


def test_finite_state_whose_sum_overflows() -> None:
    z0 = torch.full((3, 2), 3e38)
    pynode.solve(lambda t, z: torch.zeros_like(z), z0, SPAN, engine="torch", throw=False)


# ---- the times -----------------------------------------------------------------------------------


def test_kind_of_t() -> None:
    refused(r"t must be of dtype torch.float32 or torch.float64, got torch.int64\. Convert it", t=torch.arange(3))
    refused(r"t must be of dtype .* got torch.complex64", t=torch.ones(2, dtype=torch.complex64))
    refused(r"t must be a 1-d tensor or a sequence of real numbers, got list of str", t=["a", "b"])
    refused(r"t must be a 1-d tensor or a sequence of real numbers, got NoneType", t=None)


def test_shape_of_t() -> None:
    refused(r"t must be 1-d, got shape \(\)\. Flatten it, or pass \[t0, t1\]", t=torch.tensor(1.0))
    refused(r"t must be 1-d, got shape \(2, 1\)", t=torch.ones(2, 1))
    refused(r"a sequence of real numbers, got float\. Pass e.g. torch.linspace", t=1.0)


@pytest.mark.parametrize("n", [0, 1])
def test_length_of_t(n: int) -> None:
    refused(rf"t must have at least 2 entries, got {n}\. Pass the first and the last", t=torch.arange(float(n)))
    refused(rf"t must have at least 2 entries, got {n}", t=[0.0] * n)


@pytest.mark.parametrize("t", [[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
def test_order_of_t(t: list[float]) -> None:
    refused(r"t must be strictly monotone, increasing or decreasing, got .* followed by .* Sort it and drop", t=t)


def test_t_that_collapses_in_its_dtype() -> None:
    refused(r"strictly monotone.*\(torch\.float32\).*need torch\.float64", t=torch.tensor([1.0, 1.0 + 1e-12]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_t_that_is_not_finite(bad: float) -> None:
    refused(rf"t must be finite, got {bad} at position 1\. Remove or replace it", t=[0.0, bad, 1.0])


# ---- numbers and names ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rtol", "atol", "dt"])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_numbers(name: str, bad: float) -> None:
    refused(rf"{name} must be positive and finite, got {bad}\. Pass e.g. 1e-3", **{name: bad})


def test_kind_of_numbers() -> None:
    refused(r"rtol must be a positive number, got 'small'\. Pass e.g. 1e-3", rtol="small")
    for bad in (0, -3, 1.5, None):
        refused(rf"max_steps must be a positive int, got {bad}\. Pass e.g. 10_000", max_steps=bad)


def test_unknown_names_list_the_nearest_first() -> None:
    refused(r"unknown solver 'dopri6': expected one of 'dopri5'|'dopri8'", solver="dopri6")
    refused(r"unknown solver 'Tsit5': expected one of 'tsit5'", solver="Tsit5")
    refused(r"unknown sensitivity 'backsolv': expected one of 'backsolve'", sensitivity="backsolv")
    refused(r"unknown engine 'torhc': expected one of 'torch'", engine="torhc")
    refused(r"solver must be a name, got int", solver=5)
    refused(r"engine must be a name, got NoneType", engine=None)
    refused(r"sensitivity must be a name or a pynode.Sensitivity, got int", sensitivity=3)


def test_unknown_engine_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNODE_ENGINE", "jula")
    refused(r"unknown engine \(in PYNODE_ENGINE\) 'jula': expected one of 'julia'")


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun2", "rk4"])
def test_fixed_step_without_dt(engine: str, solver: str) -> None:
    refused(rf"the fixed-step solver '{solver}' needs its step: pass dt=", solver=solver, engine=engine)


def test_solver_of_another_engine() -> None:
    refused(
        r"the torch engine has no solver 'tsit5'; it is on engine=\"julia\"",
        solver="tsit5",
        engine="torch",
        kind=pynode.EngineUnavailable,
    )


def test_sensitivity_of_another_engine() -> None:
    refused(
        r"the torch engine has no sensitivity 'gauss' for the solver 'dopri5': pass one of 'discrete', 'backsolve'",
        sensitivity="gauss",
        engine="torch",
        kind=pynode.EngineUnavailable,
    )
    refused(
        r"no sensitivity 'discrete' for the solver 'lsoda': pass one of 'backsolve'",
        sensitivity=pynode.Discrete(),
        solver="lsoda",
        engine="torch",
        kind=pynode.EngineUnavailable,
    )


@pytest.mark.parametrize("keywords", [{"dt": 0.1}, {"dense": True}])
def test_what_scipy_lacks(keywords: dict[str, Any]) -> None:
    with pytest.raises(pynode.EngineUnavailable, match=r"'bdf', which is SciPy's, takes no (dt|dense=True)"):
        pynode.solve(lambda t, z: -z, Z0, SPAN, solver="bdf", engine="torch", **keywords)


# ---- the field and its company -------------------------------------------------------------------


def test_field_that_cannot_be_called(engine: str) -> None:
    refused(
        r"field must be an nn.Module or a callable f\(t, z, \*args\), got int", field=3, kind=FieldError, engine=engine
    )
    refused(r"field must be an nn.Module", field=3, kind=FieldError, engine=engine, running_cost=lambda t, z: z[:, 0])


@pytest.mark.parametrize(
    ("field", "match"),
    [
        (lambda t, z: z[:, :1], r"with the shape of the state: expected \(3, 2\), got \(3, 1\)\. Check the last"),
        (lambda t, z: z.double(), r"with the dtype of the state: expected torch.float32, got torch.float64\. Conv"),
        (lambda t, z: torch.ones(3, 2, device="meta"), r"with the device of the state: expected cpu, got meta\. Move"),
        (lambda t, z: (z,), r"must return a tensor for dz/dt, got tuple"),
        (lambda t, z: None, r"must return a tensor for dz/dt, got NoneType"),
    ],
)
def test_what_the_field_returns(engine: str, field: Any, match: str) -> None:
    refused(match, field=field, kind=FieldError, engine=engine)


def test_what_a_tuple_field_returns(engine: str) -> None:
    state = (Z0, torch.ones(3))
    refused(r"a tuple of 2 tensors, .* got Tensor", state, field=lambda t, s: s[0], kind=FieldError, engine=engine)
    refused(
        r"a tuple of 2 tensors, .* got 1 of them", state, field=lambda t, s: (s[0],), kind=FieldError, engine=engine
    )
    refused(r"component 1 of dz/dt", state, field=lambda t, s: (s[0], s[0]), kind=FieldError, engine=engine)


def test_parameters_that_are_not_finite(engine: str) -> None:
    field = nn.ModuleDict({"layer": nn.Linear(2, 2)})
    with torch.no_grad():
        field["layer"].bias[0] = float("nan")

    def function(t: Tensor, z: Tensor) -> Tensor:
        return field["layer"](z)

    refused(r"the field's parameter .*layer\.bias must be finite, got 1 of 2 entries", field=function, engine=engine)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_args(bad: float) -> None:
    refused(r"args\[1\] must be finite, got 1 of 1 entries", args=(Z0, torch.tensor([bad])))
    refused(r"args must be a tuple of tensors, got Tensor\. Pass one tensor as args=\(x,\)", args=Z0)
    refused(r"args must be a tuple of tensors, got tuple of float", args=(1.0,))


def test_running_cost(engine: str) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return -z

    refused(
        r"running_cost must be a callable l\(t, z, \*args\) -> \(batch,\), got float", field=field, running_cost=1.0
    )
    for cost, got in ((lambda t, z: z, r"\(3, 2\)"), (lambda t, z: z.sum(), r"\(\)"), (lambda t, z: 1.0, "float")):
        refused(
            rf"one number per batch entry: expected shape \(3,\), got {got}\. Sum or average",
            field=field,
            running_cost=cost,
            kind=FieldError,
            engine=engine,
        )


def test_interpolation() -> None:
    sol = pynode.solve(lambda t, z: -z, Z0, SPAN, engine="torch")
    with pytest.raises(InputError, match=r"needs an interpolant, .* Call solve\(\.\.\., dense=True\)"):
        sol(0.5)
    sol = pynode.solve(lambda t, z: -z, Z0, SPAN, engine="torch", dense=True)
    with pytest.raises(InputError, match=r"takes times within \[0, 1\], got 1.5"):
        sol(1.5)
    failed = pynode.solve(lambda t, z: z**2, Z0, [0.0, 9.0], engine="torch", dense=True, throw=False)
    with pytest.raises(InputError, match="a failed solve has none"):
        failed(0.5)


# ---- the tree ------------------------------------------------------------------------------------


def test_each_error_is_also_a_builtin() -> None:
    builtin = {
        "InputError": ValueError,
        "FieldError": ValueError,
        "TraceError": NotImplementedError,
        "EngineUnavailable": RuntimeError,
        "SolveError": ArithmeticError,
    }
    for name, kind in builtin.items():
        error = getattr(pynode, name)
        assert issubclass(error, pynode.PyNODEError)
        assert issubclass(error, kind)


def test_message_of_a_failed_solve() -> None:
    class Explosive(nn.Module):
        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return z**2

    with pytest.raises(SolveError, match=r"^Explosive with dopri5 on the torch engine stopped at t=0\.99") as caught:
        pynode.solve(Explosive(), torch.ones(1, 1), [0.0, 2.0], engine="torch")
    assert caught.value.retcode in (pynode.Retcode.STEP_UNDERFLOW, pynode.Retcode.NON_FINITE)
    assert str(caught.value).endswith(caught.value.retcode.value)


def test_public_names_exist() -> None:
    assert all(hasattr(pynode, name) for name in pynode.__all__)
    assert inspect.getdoc(pynode.solve).startswith("Solve dz/dt")


# ---- layers and models ---------------------------------------------------------------------------


@pytest.mark.parametrize("sensitivity", ["discrete", "backsolve", "forward"])
@pytest.mark.parametrize("tracked", [False, True])
def test_batch_norm_in_training_mode(engine: str, sensitivity: str, tracked: bool) -> None:
    field = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    keywords: dict[str, Any] = {"engine": engine, "sensitivity": sensitivity}
    text = r"layer .*1, BatchNorm1d, is in training mode: .* Call \.eval\(\) on that layer"
    with torch.set_grad_enabled(tracked):
        for run in (
            lambda: pynode.solve(field, Z0, SPAN, **keywords),
            lambda: pynode.solve(lambda t, z: field(z), Z0, SPAN, **keywords),
            lambda: pynode.solve(field, Z0, SPAN, running_cost=lambda t, z: z.sum(-1), **keywords),
            lambda: pynode.models.NODE(field, **keywords)(Z0),
        ):
            with pytest.raises(pynode.TraceError, match=text):
                run()
    assert field[1].num_batches_tracked == 0
    field[1].eval()
    assert pynode.solve(field, Z0, SPAN, **keywords).z.shape == (2, 3, 2)
    field.train()  # what is known of the field is of its other mode
    with pytest.raises(pynode.TraceError, match=text):
        pynode.solve(field, Z0, SPAN, **keywords)


def test_a_model_of_another_dtype_than_its_input(engine: str) -> None:
    field = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    text = r"tensors are of dtype torch.float32, and z0 is of dtype torch.float64. Convert .*\.float\(\)"
    for run in (
        lambda x: pynode.solve(field, x, SPAN, engine=engine),
        lambda x: pynode.models.NODE(field, engine=engine)(x),
        lambda x: pynode.models.NODE(field, running_cost=lambda t, z: z.sum(-1), engine=engine)(x),
        lambda x: pynode.models.ANODE(nn.Linear(3, 3), 1, engine=engine)(x),
        lambda x: pynode.models.StackedNODE([field], engine=engine)(x),
        lambda x: pynode.models.FFJORD(2, trace="exact", engine=engine).log_prob(x),
    ):
        with pytest.raises(FieldError, match=text):
            run(Z0.double())
    text = r"input_network's tensors are of dtype torch.float32, and x is of dtype torch.float64. Convert .*\.float\(\)"
    for model in (
        pynode.models.NODE(field, input_network=nn.Linear(2, 2), engine=engine),
        pynode.models.ANODE(nn.Linear(3, 3), 1, input_network="linear", engine=engine),
        pynode.models.ResNet(lambda s, z: field(z), 3, input_network=nn.Linear(2, 2)),
    ):
        with pytest.raises(FieldError, match=text):
            model(Z0.double())
    other = nn.Linear(3, 3)  # of the state's dtype, and wrong all the same
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pynode.solve(other, Z0, SPAN, engine=engine)


def test_arrays_as_inputs_of_models(engine: str) -> None:
    numpy = pytest.importorskip("numpy")
    x = numpy.ones((3, 2), dtype="float32")
    for model in (pynode.models.NODE(nn.Linear(2, 2), engine=engine), pynode.models.NODE(nn.Linear(4, 2), order=2)):
        with pytest.raises(pynode.InputError, match=r"got ndarray.*torch.as_tensor"):
            model(x)
