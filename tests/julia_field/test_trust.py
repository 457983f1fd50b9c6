"""Julia code from a file does not run unasked; copies, and processes that multiprocessing spawns, need not ask."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import pynode
from pynode import FieldError, InputError, JuliaField
from pynode.julia_field import trust
from pynode.models import NODE

julia = pytest.mark.julia

# What a stranger sends: it leaves a trace as soon as it is read.
CODE = """
begin
    touch("{path}")
    (u, p, t) -> p .* u
end
"""

STRANGER = """
import copy, io, pathlib, pickle, sys
import torch, pynode
torch.set_grad_enabled(False)
path = pathlib.Path(sys.argv[1])
model = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=False)
assert "juliacall" not in sys.modules
z = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
    for ask in (lambda: other(z), lambda: pynode.solve(other.field, z, [0.0, 1.0], engine="julia"),
                other.field.vjp_package, other.field.component_array):
        try:
            ask()
        except pynode.FieldError as error:
            said = str(error)
            assert other.field.code in said and "pynode.trust_julia_code(model)" in said, said
        else:
            raise AssertionError("it ran")
assert "juliacall" not in sys.modules
assert not path.exists()
assert pynode.trust_julia_code(model) is model
result = model(z)
assert path.exists()
assert torch.equal(pickle.loads(pickle.dumps(model))(z), result)
print(result.tolist())
"""


@julia
def test_a_model_from_a_file_asks(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    field = JuliaField(CODE.format(path=str(path)), torch.tensor(-0.5, dtype=torch.float64))
    model, z = NODE(field, engine="julia"), torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    with torch.no_grad():
        expected = model(z)
    path.unlink()
    file = io.BytesIO()
    torch.save(model, file)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(path)], input=file.getvalue(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == str(expected.tolist())


class Solved(Dataset[Tensor]):
    """Its items are solved by the worker that is asked for them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.model(torch.full((1, 1), float(index)))


@julia
def test_spawned_workers_do_not_ask() -> None:
    model = NODE(JuliaField("(u, p, t) -> p .* u", -0.5), engine="julia")
    loader = DataLoader(Solved(model), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    items = list(loader)
    assert torch.equal(torch.cat(items), torch.cat([Solved(model)[index] for index in range(4)]))


@julia
@torch.no_grad()
def test_weights_only() -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return NODE(JuliaField("(u, p, t) -> p .* u", torch.randn(2)), input_network=nn.Linear(2, 2))

    model, other, z = make(0), make(1), torch.ones(1, 2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert not torch.equal(other(z), model(z))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(z), model(z))


def test_a_signature_is_of_one_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_ALLOWED", set())
    trust.allow("mine")
    signature = trust.signature("mine")
    assert signature is not None
    assert trust.signature("theirs") is None
    for forged in (signature, None, b"", signature[:-1], "text"):
        trust.admit("theirs", forged)  # type: ignore[arg-type]
        with pytest.raises(FieldError, match="comes from a file"):
            trust.check("theirs")
    trust._ALLOWED.clear()  # as in another process
    trust.admit("mine", signature)
    trust.check("mine")


def test_code_cannot_hide_from_the_terminal() -> None:
    with pytest.raises(FieldError) as refused:
        trust.check("rm(file) #\r\x1b[2K(u, p, t) -> \u202eu\n\tx → λ")
    assert "rm(file) #\\r\\x1b[2K(u, p, t) -> \\u202eu\n\tx → λ\n" in str(refused.value)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"model must be an nn\.Module, got str"):
        pynode.trust_julia_code("model.pt")  # type: ignore[arg-type]
