"""A prepared solve is `solve`, and so is one like the one before: the same numbers, bit for bit, whatever changes."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from pynode import At, Event, prepare, solve
from pynode.control import PiecewiseConstant
from pynode.errors import FieldError, InputError, SolveError
from pynode.field._memory import memory_of
from pynode.models import CNF, NODE
from pynode.nn import ConcatSquash, TimeSequential

T = torch.linspace(0, 1, 5)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.factor = 1.0

    def forward(self, t, z):
        return self.factor * self.layers(z) * (1 + t)


def both(prepared, field, z0, t=T, args=(), **keywords):
    """The solution and its gradients by a prepared solve and by `solve`, and by that of a field that is new: equal."""
    new = copy.deepcopy(field)
    found = []
    for solution, of in (
        (prepared(z0, args=args), field),
        (solve(field, z0, t, args=args, **keywords), field),
        (solve(new, z0, t, args=args, **keywords), new),
    ):
        grads = torch.autograd.grad(solution.z.square().sum(), [p for p in of.parameters() if p.requires_grad])
        found.append((solution.z, *grads, solution.t))
    for a, b, c in zip(*found, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    return found[0][0]


def test_trained_between_calls(engine):
    field, z0 = Field(), torch.randn(3, 2)
    prepared = prepare(field, like=(z0, T), rtol=1e-5, engine=engine)
    optimizer = torch.optim.SGD(field.parameters(), lr=0.01)
    seen = []
    for _ in range(3):
        seen.append(both(prepared, field, torch.randn(3, 2), rtol=1e-5, engine=engine))
        prepared(z0).z.square().sum().backward()
        optimizer.step()
    assert not torch.equal(prepared(z0).z, prepare(Field(), like=(z0, T), rtol=1e-5, engine=engine)(z0).z)


def test_what_a_field_reads_is_looked_at_in_each_call(engine):
    field, z0 = Field(), torch.randn(3, 2)
    prepared = prepare(field, like=(z0, T), engine=engine)
    first = both(prepared, field, z0, engine=engine)
    field.factor = 2.0  # an attribute, part of the trace
    second = both(prepared, field, z0, engine=engine)
    field.layers[0] = nn.Linear(2, 4)  # another layer
    third = both(prepared, field, z0, engine=engine)
    field.layers[2].bias.requires_grad_(False)
    both(prepared, field, z0, engine=engine)
    with torch.no_grad():
        field.layers[2].bias += 1
    fourth = both(prepared, field, z0, engine=engine)
    for a, b in ((first, second), (second, third), (third, fourth)):
        assert not torch.allclose(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_times_and_tolerances_are_taken_as_they_are(engine, dtype, batching):
    field, z0 = Field().to(dtype), torch.randn(3, 2, dtype=dtype)
    t, rtol = T.to(dtype, copy=True), torch.tensor([1e-3, 1e-5])
    keywords = {"engine": engine, "batching": batching}
    expected = solve(field, z0, t.clone(), rtol=1e-4, **keywords)
    prepared = prepare(field, like=(z0, t), rtol=1e-4, **keywords)
    by_component = None
    if batching == "joint" and dtype == torch.float32:
        by_component = prepare(field, like=(z0, T), rtol=rtol, engine=engine)
    before = None if by_component is None else by_component(z0).z
    t += 1
    rtol *= 1e3
    first = prepared(z0)
    first.t.add_(5)  # a solution's times are its own to change
    again = prepared(z0)
    assert torch.equal(first.z, expected.z)
    assert torch.equal(again.z, expected.z)
    assert torch.equal(again.t, expected.t)
    if by_component is not None:
        assert torch.equal(by_component(z0).z, before)


def test_everything_else_that_solve_takes(engine):
    z0, a = torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0, 1.0]], requires_grad=True)
    path = PiecewiseConstant(torch.tensor([0.0, 0.4, 1.0]), torch.tensor([[[1.0], [2.0], [3.0]]]))
    cases = [
        (lambda t, z, a: -a * z, (a,), {"running_cost": lambda t, z, a: z.sum(1)}),
        (lambda t, z: -z, (), {"event": [At(torch.tensor([0.3]), lambda t, z: z + 1)]}),
        (lambda t, z: -z, (), {"event": Event(lambda t, z: z[0, 0] - 0.7)}),
        (lambda t, z, x: -z * x(t), (), {"control": path}),
        (lambda t, z: -z, (), {"save": lambda t, z: z.sum(1)}),
        (lambda t, z: -z, (), {"save": "steps"}),
        (lambda t, z: torch.where(t >= 0.35, -z, z), (), {}),
        (lambda t, z: -z, (), {"solver": "rk4", "dt": 0.1, "sensitivity": "discrete"}),
    ]
    for field, args, keywords in cases:
        prepared = prepare(field, like=(z0, T), engine=engine, **keywords)
        for _ in range(2):
            found, expected = prepared(z0, args=args), solve(field, z0, T, args=args, engine=engine, **keywords)
            for name in ("t", "z", "running_cost", "event_t", "event_z"):
                x, y = getattr(found, name), getattr(expected, name)
                assert (x is None) == (y is None)
                if x is None:
                    continue
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=f"{name} of {keywords}")
        if args:
            one, two = (torch.autograd.grad(s.running_cost.sum(), a)[0] for s in (found, expected))
            assert torch.equal(one, two)


def test_states_of_another_form(engine):
    z0 = {"x": torch.ones(2, 3), "y": torch.ones(2, dtype=torch.float32)}

    def field(t, z):
        return {"x": -z["x"], "y": z["y"]}

    prepared = prepare(field, like=(z0, T), engine=engine)
    assert torch.equal(prepared(z0).z["y"], solve(field, z0, T, engine=engine).z["y"])
    with pytest.raises(InputError, match=r"like the state that the solve was prepared for.* got a Tensor of \(2, 3\)"):
        prepared(z0["x"])


def test_another_batch_size(engine):
    field = Field()
    prepared = prepare(field, like=(torch.randn(3, 2), T), engine=engine)
    both(prepared, field, torch.randn(7, 2), engine=engine)
    alone = prepare(field, like=(torch.randn(3, 2), T), engine=engine, batching="independent")
    with pytest.raises(InputError, match=r"prepared for, \(3, 2\) of torch.float32 on cpu, got \(7, 2\)"):
        alone(torch.randn(7, 2))


def test_what_is_refused(engine):
    field, z0 = Field(), torch.randn(3, 2)
    prepared = prepare(field, like=(z0, T), engine=engine)
    for wrong in (torch.randn(3, 3), torch.randn(3, 2, dtype=torch.float64), [1.0], torch.randn(3, 2, 1)):
        with pytest.raises((InputError, TypeError)):
            prepared(wrong)
    with pytest.raises(InputError, match="without a gradient"):
        prepare(field, like=(z0, T.clone().requires_grad_()), engine=engine)
    with pytest.raises(InputError, match="rtoll"):
        prepare(field, like=(z0, T), rtoll=1e-3, engine=engine)
    with pytest.raises(InputError, match=r"like must be a pair of a state and the times, \(z0, t\), got Tensor"):
        prepare(field, like=z0, engine=engine)
    with pytest.raises(InputError, match="rtol must be positive"):
        prepare(field, like=(z0, T), rtol=-1.0, engine=engine)
    with pytest.raises(InputError, match="z0 must be finite"):
        prepared(torch.full((3, 2), torch.nan))


def test_within_inference_mode_and_without_gradients(engine):
    field, z0 = Field(), torch.randn(3, 2)
    with torch.inference_mode():
        prepared = prepare(field, like=(z0.clone(), T.clone()), engine=engine)
        inside = prepared(z0.clone()).z
    assert torch.equal(both(prepared, field, z0, engine=engine), inside)


def test_transforms(engine):
    field, z0 = Field(), torch.randn(3, 2)
    prepared = prepare(field, like=(z0, T), engine=engine, solver="rk4", dt=0.25)
    found = torch.func.vjp(lambda z: prepared(z).z[-1], z0)[1](torch.ones(3, 2))[0]
    expected = torch.func.vjp(lambda z: solve(field, z, T, engine=engine, solver="rk4", dt=0.25).z[-1], z0)[1](
        torch.ones(3, 2)
    )[0]
    assert torch.equal(found, expected)


class WithArgs(Field):
    def forward(self, t, z, a):
        return super().forward(t, z) * a


def test_repeated_calls_look_at_what_may_have_changed(engine):
    """After two calls a third one goes by what they have found out, unless something is another."""
    field, z0, a = WithArgs(), torch.randn(3, 2), torch.rand(2)
    prepared = prepare(field, like=(z0, T), rtol=1e-5, engine=engine)

    def check(z0=z0, a=a):
        for _ in range(3):
            both(prepared, field, z0, args=(a,), rtol=1e-5, engine=engine)
            with torch.no_grad():
                expected = solve(copy.deepcopy(field), z0, T, args=(a,), rtol=1e-5, engine=engine).z
                assert torch.equal(prepared(z0, args=(a,)).z, expected)
                assert torch.equal(solve(field, z0, T, args=(a,), rtol=1e-5, engine=engine).z, expected)

    check()
    check(torch.randn(3, 2), torch.rand(2))
    check(torch.randn(2, 3).T, torch.rand(4)[::2])  # strided
    check(torch._neg_view(torch.randn(3, 2)), torch._neg_view(torch.rand(2)))
    check(torch.randn(3, 2).requires_grad_(), torch.rand(2).requires_grad_())
    check(a=torch.rand(()))
    check(a=torch.rand(3, 2))
    check(z0=torch.randn(2, 2))
    weight = field.layers[0].weight
    weight.data = torch.randn(2, 4).T  # the same parameter, elsewhere and strided
    check()
    with torch.no_grad():
        weight.mul_(2)
    check()
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    field.layers = nn.Sequential(first, nn.Tanh(), last)
    check()
    del field.layers
    field.layers = nn.Sequential(last, nn.Tanh(), first)
    check()
    handle = field.layers[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    check()
    handle.remove()
    check()


def test_repeated_calls_have_derivatives_of_all_orders(engine):
    field, z0 = Field().double(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    t = T.double()
    keywords = {"engine": engine, "solver": "rk4", "dt": 0.25, "sensitivity": "discrete"}
    prepared = prepare(field, like=(z0, t), **keywords)
    for _ in range(3):
        seconds = []
        for call in (prepared, lambda z: solve(field, z, t, **keywords)):
            (first,) = torch.autograd.grad(call(z0).z.square().sum(), z0, create_graph=True)
            seconds.append(torch.autograd.grad(first.square().sum(), [z0, *field.parameters()]))
        for x, y in zip(*seconds, strict=True):
            assert torch.equal(x, y)
        z = prepared(z0).z
        v = torch.randn(2, *z.shape, dtype=z.dtype)
        (each,) = torch.autograd.grad(z, z0, v, is_grads_batched=True, retain_graph=True)
        for x, one in zip(each, v, strict=True):
            torch.testing.assert_close(x, torch.autograd.grad(z, z0, one, retain_graph=True)[0])


def test_repeated_calls_refuse_what_is_not_right(engine):
    field, z0 = Field(), torch.randn(3, 2)
    prepared = prepare(field, like=(z0, T), engine=engine)
    for _ in range(2):
        prepared(z0)
    with pytest.raises(InputError, match="z0 must be finite"):
        prepared(torch.full((3, 2), torch.nan))
    with pytest.raises((InputError, TypeError)):
        prepared(z0, args=torch.ones(0, 2))
    with pytest.raises((FieldError, InputError, TypeError)):
        prepared(z0, args=(torch.ones(2),))
    loss = prepared(z0).z.square().sum()
    with torch.no_grad():
        field.layers[0].weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepared(z0).z, solve(field, z0, T, engine=engine).z)
    few = prepare(field, like=(z0, T), engine=engine, max_steps=2, rtol=1e-6)
    lenient = prepare(field, like=(z0, T), engine=engine, max_steps=2, rtol=1e-6, throw=False)
    for _ in range(3):
        with pytest.raises(SolveError, match="max_steps"):
            few(z0)
        assert lenient(z0).retcode.name == "MAX_STEPS"


def test_solves_like_the_one_before_look_at_what_is_asked_for(engine, monkeypatch):
    field, z0 = Field(), torch.randn(3, 2)

    def check(t=T, z0=z0, **keywords):
        keywords = {"engine": engine, "rtol": 1e-5} | keywords
        for _ in range(4):
            found = solve(field, z0, t, **keywords)
            expected = solve(copy.deepcopy(field), z0, t, **keywords)
            assert torch.equal(found.z, expected.z)
            assert torch.equal(found.t, expected.t)
            assert (found.solver, found.engine) == (expected.solver, expected.engine)
        return found

    check()
    check(rtol=1e-2)
    check(rtol=torch.tensor([1e-2, 1e-6]))
    check(atol=1e-3)
    check(solver="rk4", dt=0.25)
    check(solver="rk4", dt=0.5)
    check(t=T.tolist())
    check(t=2 * T)
    t = T.clone()
    check(t)
    t += 1
    check(t)
    t.numpy()[:] *= 2  # of which torch does not know
    check(t)
    check(t.double())
    check(t.view(1, -1).expand(3, -1))
    check(T[::2])
    found = check(dense=True)
    assert torch.equal(found(0.5), solve(copy.deepcopy(field), z0, T, dense=True, rtol=1e-5, engine=engine)(0.5))
    assert check(save=lambda t, z: z[:, 0]).z.shape == (5, 3)
    assert not torch.equal(check(save="steps").t.float(), T)
    check()
    with pytest.raises(SolveError):
        solve(field, z0, T, rtol=1e-5, max_steps=1, engine=engine)
    with pytest.raises(InputError, match="rtol"):
        solve(field, z0, T, rtol=-1e-5, engine=engine)
    with pytest.raises(InputError, match="monotone"):
        solve(field, z0, T.flip(0).sort()[0][[0, 0, 1]], rtol=1e-5, engine=engine)
    times = T.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(solve(field, z0, times, rtol=1e-5, engine=engine).z.sum(), times)
    assert gradient.abs().sum() > 0
    check(engine="auto")
    monkeypatch.setenv("PYNODE_ENGINE", "torch")
    assert check(engine="auto").engine == "torch"
    monkeypatch.setenv("PYNODE_ENGINE", "none")
    with pytest.raises(InputError, match="PYNODE_ENGINE"):
        solve(field, z0, T, rtol=1e-5)
    one = torch.randn(1, 2).expand(3, 2)
    check(z0=one)
    mapped = torch.vmap(lambda x: solve(field, x, T, rtol=1e-5, engine=engine).z)(torch.stack([z0, one]))
    assert torch.allclose(mapped[0], check().z, atol=1e-4)


def test_each_solution_has_memory_of_its_own(engine):
    field, z0, t = Field(), torch.randn(3, 2), T.clone()
    prepared = prepare(field, like=(z0, t), engine=engine)
    found = [solve(field, z0, t, engine=engine) for _ in range(4)] + [prepared(z0) for _ in range(4)]
    assert len({x.t.data_ptr() for x in found} | {t.data_ptr()}) == 9
    assert len({x.z.data_ptr() for x in found}) == 8


def test_copies_of_what_has_solved(engine):
    """On julia a module that held one could not be copied after its first call, nor could its average be taken."""
    field, z0 = Field(), torch.randn(3, 2)
    prepared = prepare(field, like=(z0, T), engine=engine)
    for _ in range(3):
        prepared(z0).z.sum().backward()
    copied = copy.deepcopy(prepared)
    with torch.no_grad():
        next(copied.field.parameters()).mul_(2)
    for x in (prepared, copied):
        assert torch.equal(x(z0).z, solve(x.field, z0, T, engine=engine).z)
    assert not torch.equal(copied(z0).z, prepared(z0).z)


def test_models_look_at_what_may_have_changed(engine):
    """Their fields, of the state alone or with a trace, are made of modules anew at each call."""
    node = NODE(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)), engine=engine)
    field = TimeSequential(ConcatSquash(nn.Linear(2, 4)), nn.Tanh(), ConcatSquash(nn.Linear(4, 2)))
    base = MultivariateNormal(torch.zeros(2), torch.eye(2))
    flow = CNF(field, base, trace="hutchinson", kinetic=0.1, engine=engine)
    x = torch.randn(3, 2)

    def check():
        for _ in range(4):
            found = []
            for model in (node, copy.deepcopy(node)):
                z = model(x)
                found.append((z, *torch.autograd.grad(z.square().sum(), model.field.parameters())))
            for model in (flow, copy.deepcopy(flow)):
                torch.manual_seed(7)
                p = model.log_prob(x)
                found.append((p, *torch.autograd.grad(p.sum(), model.field.parameters())))
                found.append((model.sample(3),))
            for a, b in zip(*found[:2], strict=True):
                assert torch.equal(a, b)
            for a, b in zip((*found[2], *found[3]), (*found[4], *found[5]), strict=True):
                assert torch.equal(a, b)

    check()
    flow.eval()
    check()
    flow.train()
    check()
    node.field[1] = nn.Softplus()
    flow.field[1] = nn.Softplus()
    check()
    with torch.no_grad():
        for p in (*node.parameters(), *flow.parameters()):
            p.mul_(1.5)
    check()
    handles = [m.field[1].register_forward_hook(lambda module, inputs, output: 0.5 * output) for m in (node, flow)]
    check()
    for handle in handles:
        handle.remove()
    check()
    node.field[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(node(x).sum(), node.field[0].weight)


def test_a_class_that_changes(engine):
    class Changing(OfState):
        forward = OfState.forward

    field, x = Changing(), torch.randn(3, 2)

    def found():
        return [solve(field, x, T, engine=engine).z for _ in range(4)]

    before = found()
    Changing.forward = lambda self, t, z: t * self.layer(z)
    after = found()
    expected = solve(lambda t, z: t * field.layer(z), x, T, engine=engine).z
    assert all(torch.equal(z, before[0]) for z in before)
    for z in after:
        torch.testing.assert_close(z, expected)
    Changing.forward = lambda self, z: 2 * self.layer(z)
    expected = solve(lambda t, z: 2 * field.layer(z), x, T, engine=engine).z
    for z in found():
        torch.testing.assert_close(z, expected)
    layer = nn.Linear(2, 2)
    Changing.layer = property(lambda self: layer)
    del field.layer
    expected = solve(lambda t, z: 2 * layer(z), x, T, engine=engine).z
    for z in found():
        torch.testing.assert_close(z, expected)


class OfState(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, z):
        return self.layer(z)


class Twice(OfState):
    def forward(self, z):
        return 2 * self.layer(z)


class Timed(OfState):
    def forward(self, t, z):
        return self.layer(z) * (1 + t)


class Sparse(OfState):
    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.eye(2).to_sparse())

    def forward(self, z):
        return torch.sparse.mm(self.matrix, self.layer(z).T).T


class Mixed(OfState):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0], dtype=torch.float64))

    def forward(self, z):
        return self.layer(z) * self.scale.float()


class WithProperty(OfState):
    @property
    def factor(self):
        return 1.0

    def forward(self, z):
        return self.factor * self.layer(z)


class TimedTwice(OfState):
    def forward(self, t, z):
        return 2 * self.layer(z) * (1 + t)


class Tripled(nn.Linear):
    def forward(self, z):
        return 3 * super().forward(z)


def tripled(module, *gradients):
    return tuple(None if g is None else 3 * g for g in gradients[0])


CHANGES = {
    "a sparse buffer": (Sparse, lambda field: field.matrix.mul_(3)),
    "a buffer of another dtype": (Mixed, lambda field: field.scale.mul_(3)),
    "the class": (OfState, lambda field: setattr(field, "__class__", Twice)),
    "the class of one that takes the time": (Timed, lambda field: setattr(field, "__class__", TimedTwice)),
    "a submodule's class": (OfState, lambda field: setattr(field.layer, "__class__", Tripled)),
    "a backward hook": (OfState, lambda field: field.layer.register_full_backward_hook(tripled)),
    "a backward pre-hook": (OfState, lambda field: field.layer.register_full_backward_pre_hook(tripled)),
    "a forward hook": (OfState, lambda field: field.layer.register_forward_hook(lambda module, inputs, out: 3 * out)),
}


def by_new_field(field, z0, engine):
    """What a field gives, and a new one that is like it, with gradients."""
    found = []
    for f in (field, copy.deepcopy(field)):
        z = solve(f, z0, T, engine=engine).z
        found.append((z, *torch.autograd.grad(z.square().sum(), f.layer.parameters())))
    return found


@pytest.mark.parametrize("what", CHANGES)
def test_changes_that_are_seen(what, engine):
    make, change = CHANGES[what]
    field, z0 = make(), torch.randn(3, 2)
    before, *_ = [by_new_field(field, z0, engine)[0] for _ in range(4)]
    change(field)
    for _ in range(4):
        found, expected = by_new_field(field, z0, engine)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        assert any(not torch.equal(a, b) for a, b in zip(found, before, strict=True))


def test_code_and_hooks_of_all_modules_that_change(engine):
    class OwnCode(OfState):
        def forward(self, z):
            return self.layer(z)

    class OwnProperty(WithProperty):
        @property
        def factor(self):
            return 2.0

    for kind, place, code in (
        (OwnCode, OwnCode.forward, Twice.forward.__code__),
        (OwnProperty, OwnProperty.factor.fget, (lambda self: 3.0).__code__),
    ):
        field, z0 = kind(), torch.randn(3, 2)
        before, *_ = [by_new_field(field, z0, engine)[0] for _ in range(4)]
        place.__code__ = code
        found, expected = by_new_field(field, z0, engine)
        assert torch.equal(found[0], expected[0])
        assert not torch.equal(found[0], before[0])
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, inputs, output: 2 * output if isinstance(module, nn.Linear) else None
        )
        try:
            hooked, expected = by_new_field(field, z0, engine)
        finally:
            hook.remove()
        assert torch.equal(hooked[0], expected[0])
        assert not torch.equal(hooked[0], found[0])
        assert torch.equal(by_new_field(field, z0, engine)[0][0], found[0])


@pytest.mark.parametrize("kind", [OfState, Timed])
def test_nothing_of_the_users_is_held(kind, engine):
    field, z0, t = kind(), torch.randn(3, 2), T.double()
    for _ in range(3):
        solve(field, z0, t, engine=engine)
    t += 1
    other = T.double()
    assert torch.equal(
        solve(field, z0, other, engine=engine).z, solve(copy.deepcopy(field), z0, other, engine=engine).z
    )
    for _ in range(4):
        field.last = solve(field, z0, T, engine=engine).z
    held = weakref.ref(field), weakref.ref(other)
    del field, other
    gc.collect()
    assert [x() for x in held] == [None, None]


def test_a_tensor_that_a_transform_has_left(engine):
    field, z0, left = OfState(), torch.randn(3, 2), []
    for _ in range(3):
        expected = solve(field, z0, T, engine=engine).z
    torch.vmap(lambda x: (left.append(x), x)[1])(z0[None])
    assert torch.equal(solve(field, left[0], T, engine=engine).z, expected)


def test_what_one_thread_is_about_to_go_by_stays_as_another_solves_over_other_times(engine):
    field, z0 = Timed(), torch.randn(3, 2)
    for _ in range(3):
        expected = solve(field, z0, T, engine=engine).z
    found = memory_of(field).recent
    for _ in range(3):
        solve(field, z0, 2 * T, engine=engine)
    solution = found.solve(field, z0, T, ())
    assert (solution is None) == (engine == "torch")
    assert solution is None or torch.equal(solution.z, expected)


@pytest.mark.parametrize("kind", [Timed, Field])
def test_times_that_change_at_each_call(kind, engine):
    """As many of a dtype are solved by what the solve before has found out, and are the right ones."""
    field, z0 = kind(), torch.randn(3, 2)
    asked = {"engine": engine, "rtol": 1e-5}
    each = [T, 2 * T, T + 1, 1 - T, T.double(), T.double() / 3, T[:3], T[1:4], T.double()[:3], 5 * T - 7]
    for t in [*each, *each, *(torch.rand(5).sort()[0] for _ in range(5))]:
        new = copy.deepcopy(field)
        solution, expected = solve(field, z0, t, **asked), solve(new, z0, t, **asked)
        assert torch.equal(solution.z, expected.z)
        assert torch.equal(solution.t, t)
        gradient = torch.autograd.grad(solution.z.square().sum(), list(field.parameters()))
        assert all(map(torch.equal, gradient, torch.autograd.grad(expected.z.square().sum(), list(new.parameters()))))
    with pytest.raises(InputError, match="monotone"):
        solve(field, z0, T[[0, 2, 1, 3, 4]], **asked)
    with pytest.raises(InputError, match="finite"):
        solve(field, z0, T / 0, **asked)


def test_times_in_a_list_or_an_array(engine):
    """They are solved by what the solve before has found out as well, and nobody writes to what is kept of them."""
    field, z0 = Timed(), torch.randn(3, 2)
    numbers = [0.0, 0.3, 1]
    for t in (
        numbers,
        tuple(numbers),
        np.array(numbers),
        np.array(numbers, dtype=np.float32),
        [1, 0],
        [-0.0, 1.0],
        [0.0, 1.0],
    ):
        for state in (z0, z0.double()):
            module = copy.deepcopy(field).to(state.dtype)
            for _ in range(3):
                solution, expected = (
                    solve(module, state, t, engine=engine),
                    solve(copy.deepcopy(module), state, t, engine=engine),
                )
                assert torch.equal(solution.z, expected.z)
                assert torch.equal(solution.t, expected.t)
                assert solution.t.dtype == (state.dtype if type(t) in (list, tuple) else torch.as_tensor(t).dtype)
                assert solution.t.tolist() == pytest.approx([float(x) for x in t])
                assert list(map(math.copysign, [1.0] * len(t), solution.t.tolist())) == [
                    math.copysign(1.0, x) for x in t
                ]
                if type(t) in (list, tuple):
                    solution.t.fill_(7.0)
            assert memory_of(module).recent is not None
    with pytest.raises(InputError, match="monotone"):
        solve(field, z0, [0.0, 1.0, 0.5], engine=engine)
    for bad in ([], [0.0], [0.0, "1"], [0.0, None], [0, 10**400], 3):
        with pytest.raises(InputError):
            solve(field, z0, bad, engine=engine)
    with torch.inference_mode():
        solve(field, z0, [0.0, 0.625], engine=engine)
    solve(field, z0, [0.0, 0.625], engine=engine).z.sum().backward()
