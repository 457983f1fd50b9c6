"""Two processes, each with a half of every batch, come to what one comes to with all of it."""

from pathlib import Path

import process_group
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pynode import models, solve
from pynode.errors import InputError
from pynode.models import NODE

FAMILIES = tuple(process_group.families())
HALVED = ("NODE", "NODE, each sample's own steps", "FFJORD", "LatentODE, ODE-RNN")


def test_every_family_is_trained_by_two_processes():
    assert {name.split(",")[0] for name in FAMILIES} == set(models.__all__) - {"parameter_gradient_density"}


@pytest.mark.parametrize(
    ("engine", "names", "halved"),
    [
        pytest.param("torch", FAMILIES, HALVED, marks=pytest.mark.slow, id="torch"),
        pytest.param("julia", FAMILIES, HALVED, marks=[pytest.mark.julia, pytest.mark.exhaustive], id="julia"),
        pytest.param(
            *("julia", ("NODE", "FFJORD", "LatentODE", "NeuralSDE"), ("NODE",)),
            marks=[pytest.mark.julia, pytest.mark.slow],
            id="julia, some",
        ),
    ],
)
def test_two_processes_train_as_one_does(engine, names, halved, tmp_path: Path):
    """Of every family; parameters in copies (DDP) and in halves (FSDP2)."""
    out, meeting = tmp_path / "found", tmp_path / "meeting"
    multiprocessing.spawn(process_group.work, (str(meeting), str(out), engine, names, halved), nprocs=2)
    found = torch.load(out, weights_only=True)
    assert set(found["replicated"]) == set(names)
    assert len(found["sharded"]) == 2 * len(halved)
    for way in ("replicated", "sharded"):
        wrong = {k: errors for k, errors in found[way].items() if not max(errors) < 1e-12}
        assert not wrong, way


@pytest.fixture
def mesh(tmp_path: Path):
    """A mesh of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


T = torch.tensor([0.0, 0.5, 1.0])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))


def test_a_sharded_model_is_solved_with_whole_parameters(engine, mesh):
    x = torch.randn(3, 2)
    plain, sharded = NODE(network()), fully_shard(NODE(network()), mesh=mesh, reshard_after_forward=True)
    for model in (plain, sharded):
        model(x).square().sum().backward()
    for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
        assert isinstance(q.grad, DTensor)
        torch.testing.assert_close(q.grad.full_tensor(), p.grad)


def test_a_tensor_in_parts_is_refused(engine, mesh):
    z0 = torch.randn(3, 2)
    parts = DTensor.from_local(z0, mesh)
    field = fully_shard(network(), mesh=mesh)
    said = r"must be a tensor that holds its numbers in this process, got a DTensor\. "
    with pytest.raises(InputError, match=rf"the field's tensor self\.0\.weight {said}Shard the module that calls"):
        solve(field, z0, T, engine=engine)
    with pytest.raises(InputError, match=rf"the field's tensor a {said}"):
        solve(lambda t, z, a=parts: -a * z, z0, T, engine=engine)
    with pytest.raises(InputError, match=rf"z0 {said}Pass x\.to_local\(\)"):
        solve(network(), parts, T, engine=engine)
    with pytest.raises(InputError, match=rf"args\[0\] {said}Pass x\.to_local\(\)"):
        solve(lambda t, z, a: -a * z, z0, T, args=(parts,), engine=engine)
    with pytest.raises(InputError, match=rf"t {said}Pass x\.to_local\(\)"):
        solve(network(), z0, DTensor.from_local(T, mesh), engine=engine)


def test_a_field_that_was_whole_before_is_refused_once_it_is_in_parts(engine, mesh):
    field, z0 = network(), torch.randn(3, 2)
    solve(field, z0, T, engine=engine)
    fully_shard(field, mesh=mesh)
    with pytest.raises(InputError, match="got a DTensor"):
        solve(field, z0, T, engine=engine)


def test_what_a_part_becomes_is_solved(engine, mesh):
    """The remedies of the message."""
    z0 = torch.randn(3, 2)
    parts = DTensor.from_local(z0, mesh).requires_grad_()
    expected = solve(network(), z0, T, engine=engine).z
    for x in (parts.full_tensor(), parts.to_local()):
        z = solve(network(), x, T, engine=engine).z
        torch.testing.assert_close(z, expected)
        (grad,) = torch.autograd.grad(z.sum(), parts)
        assert grad.full_tensor().abs().sum() > 0
