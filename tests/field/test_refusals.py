"""What a trace refuses, with the operation, the user's line, and the remedy."""

from __future__ import annotations

import linecache
import random
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode import FieldError, InputError, TraceError
from pynode.field import trace

Z = torch.tensor([[0.3, -0.2], [1.0, 0.7], [-0.5, 0.1]], dtype=torch.float64)


def refusal(f: Callable[..., Tensor], marker: str | None = None) -> str:
    """The message of the refusal; it has to name the line of this file that holds the marker."""
    with pytest.raises(TraceError) as caught:
        trace(f, Z)
    text = str(caught.value)
    if marker is not None:
        lines = [i for i, line in enumerate(linecache.getlines(__file__), 1) if line.rstrip().endswith(f"# {marker}")]
        assert len(lines) == 1
        assert f" at {__file__}:{lines[0]}: `" in text
    return text


REMEDY = 'engine="torch"'


def test_if_on_a_value() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        if z.sum() > 0:  # branch
            return z
        return -z

    text = refusal(f, "branch")
    assert "control flow or a Python number depends on the values of its tensors" in text
    assert "Use torch.where instead of `if`" in text
    assert REMEDY in text


@pytest.mark.parametrize(("folder", "least"), [("pynode/field", 0), ("torch/models", 1)])
def test_the_line_is_named_whatever_the_folders_are_called(folder: str, least: int, tmp_path: Path) -> None:
    """As in a clone of pynode, which has the same name as the package."""
    file = tmp_path / folder / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"def f(t, z):\n    return z if z.sum() > {least} else -z\n")
    assert f" at {file}:2: `return z if z.sum() > {least} else -z`" in refusal(runpy.run_path(str(file))["f"])


def test_if_on_the_time() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return z if t < 0.5 else -z  # time

    assert "control flow" in refusal(f, "time")


def test_python_numbers() -> None:
    assert "a Python number depends on the values" in refusal(
        lambda t, z: z * z.max().item(),  # item
        "item",
    )
    assert "a Python number depends on the values" in refusal(
        lambda t, z: z * float(t),  # float
        "float",
    )


def test_numpy() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.from_numpy(np.sin(z.detach().numpy()))  # numpy

    assert REMEDY in refusal(f, "numpy")


def test_dropout_in_training() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.drop(z)  # dropout

    net = Net()
    text = refusal(net, "dropout")
    assert "the field draws random numbers (aten.bernoulli_" in text
    assert "Call field.eval() for dropout" in text
    trace(net.eval(), Z)


@pytest.mark.parametrize("layer", [nn.RReLU(), nn.Dropout1d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()], ids=str)
def test_stochastic_layers_in_training(layer: nn.Module) -> None:
    assert "random numbers" in refusal(lambda t, z: layer(z[:, None])[:, 0])


def test_random_numbers() -> None:
    text = refusal(lambda t, z: z + torch.randn_like(z))
    assert "draws random numbers (aten.randn_like" in text
    assert "draw the noise once and pass it in args" in text


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_outside_of_torch(draw: Callable[[], float]) -> None:
    text = refusal(lambda t, z: z * draw())
    assert "the graph and the field itself" in text.replace("field's graph", "graph")
    assert "depends on something that changes between calls" in text


def test_state() -> None:
    """A counter that the value depends on."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            self.calls += 1
            return z * self.calls

    assert "something that changes between calls (a counter" in refusal(Net())


@pytest.mark.parametrize("spoilt", ["value", "product"])
def test_something_that_changes_beside_numbers_that_are_not_finite(spoilt: str) -> None:
    """An infinite entry of the value, or of a product, hides no difference of the others."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            self.calls += 1
            return self.calls * z + (1 / z[:, :1] if spoilt == "value" else z[:, :1].abs().sqrt())

    z = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    with pytest.raises(TraceError, match="something that changes between calls"):
        trace(Net(), z)


def test_batch_norm_in_training() -> None:
    net = nn.BatchNorm1d(2, dtype=torch.float64)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return net(z)  # running statistics

    with pytest.raises(TraceError, match=r"layer net, BatchNorm1d, is in training mode.*Call \.eval\(\)"):
        trace(f, Z)
    net.eval()
    trace(f, Z)


def test_writing_to_the_state() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        z[:, 0] = 0.0  # writes
        return z

    with pytest.raises(FieldError, match=r"changes its input z in place at .*test_refusals\.py:\d+: `z\[:, 0\] = 0"):
        trace(f, Z)


def test_writing_to_a_buffer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            self.calls += 1  # buffer
            return -z

    net = Net()
    text = refusal(net, "buffer")
    assert "writes to one of its own tensors or inputs (aten.add_.Tensor)" in text


def test_unsupported_operation() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.special.bessel_j0(z)  # bessel

    text = refusal(f, "bessel")
    assert "the operation aten.special_bessel_j0" in text
    assert "pynode.field.supported_ops() lists" in text
    assert REMEDY in text


def test_operation_on_parameters_alone() -> None:
    """Where a parametrization would help, the message says so."""
    w = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    text = refusal(lambda t, z: z * torch.special.bessel_j0(w).sum())
    assert "torch.nn.utils.parametrize" in text


def test_mixed_types() -> None:
    w = torch.ones(2)
    text = refusal(lambda t, z: (z.float() * w).double())
    assert "numbers of type torch.float32 beside a state of type torch.float64" in text


def test_conditioning_tensor_of_another_type() -> None:
    with pytest.raises(TraceError, match=r"args\[0\] is of dtype torch.float32 beside a state of dtype torch.float64"):
        trace(lambda t, z, k: z, Z, args=(torch.zeros(3),))


def test_integers_that_a_state_cannot_count() -> None:
    args = (torch.tensor([0, 2**24 + 1, 3]),)
    with pytest.raises(InputError, match=r"beyond 16777216, which numbers of .* torch\.float32, cannot"):
        trace(lambda t, z, k: z * k[:, None], Z.float(), args=args)


def test_what_replaces_an_operation() -> None:
    """The message has a line that does the same."""
    index = torch.tensor([[0, 1], [2, 2]])
    line = "torch.nn.functional.embedding(index, weight).sum(-2)"
    assert line in refusal(lambda t, z: z + torch.nn.functional.embedding_bag(index, z, mode="sum").sum())
    found = eval(line, {"torch": torch, "index": index, "weight": Z})
    torch.testing.assert_close(found, torch.nn.functional.embedding_bag(index, Z, mode="sum"))


@pytest.mark.parametrize("kept", ["argument", "closure"])
def test_branches_that_torch_compiles(kept: str) -> None:
    """torch.cond and its like are refused by both engines, with what replaces them; a branch's own error is itself."""
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def f(t: Tensor, z: Tensor) -> Tensor:
        return torch.cond(z.sum() > 0, lambda z: z * (w if kept == "closure" else 1), torch.sin, (z,))

    for run in (lambda: trace(f, Z), lambda: pynode.solve(f, Z, [0.0, 1.0], engine="torch")):
        with pytest.raises(FieldError, match=r"the field calls torch's cond at .*both branches and torch\.where"):
            run()

    def broken(t: Tensor, z: Tensor) -> Tensor:
        def branch(z: Tensor) -> Tensor:
            raise LookupError("own")

        return torch.cond(True, branch, branch, (z,))

    with pytest.raises(LookupError, match="own"):
        trace(broken, Z)


def test_loops_that_torch_compiles() -> None:
    from torch._higher_order_ops.while_loop import while_loop

    def f(t: Tensor, z: Tensor) -> Tensor:
        return while_loop(lambda i, z: i < 3, lambda i, z: (i + 1, z.sin()), (torch.tensor(0), z))[1]

    with pytest.raises(FieldError, match=r"torch's while_loop at .*fixed number of rounds in a Python loop"):
        trace(f, Z)


def test_computed_mask_as_index() -> None:
    """What it picks has a size that depends on values."""
    assert "a mask that is computed" in refusal(lambda t, z: z * z[z > 0].sum())


def test_index_along_the_batch() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return z[torch.tensor([2, 1, 0])]

    graph = trace(f, Z)  # possible for a batch of three only
    assert graph.batch == 3


def test_the_torch_engine_takes_what_a_trace_refuses() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        return z if t < 0.5 else -z

    z = pynode.solve(f, Z, [0.0, 0.5, 1.0], engine="torch", solver="rk4", dt=0.1).z
    assert torch.isfinite(z).all()


@pytest.mark.julia
def test_refused_by_the_julia_engine() -> None:
    with pytest.raises(TraceError, match="control flow"):
        pynode.solve(lambda t, z: z if z.sum() > 0 else -z, Z, [0.0, 1.0], engine="julia")


def test_complex_numbers_without_a_counterpart() -> None:
    def f(t: Tensor, z: Tensor) -> Tensor:
        c = torch.cumprod(torch.view_as_complex(z.contiguous()[None]), 0)  # transform
        return torch.view_as_real(c)[0]

    text = refusal(f, "transform")
    assert "aten.cumprod.default of complex numbers" in text
    assert "real and imaginary parts" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_complex_parameter_of_a_scripted_module() -> None:
    """No copy of it can read another tensor."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1 + 2j, 0.5], dtype=torch.complex128))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return torch.real(z * self.w)

    text = refusal(torch.jit.script(Net()))
    assert "a parameter of a module of torch.jit is complex" in text
    assert "keep the parameter as real numbers" in text
