"""The kernels that the lowered fields have on a GPU, compiled for one by CUDA.jl, to PTX; there need be none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference import sample
from zoo import CASES

from pynode.engine.julia.device import Device
from pynode.errors import EngineUnavailable

NO_DEVICE = Path(__file__).resolve().parents[2] / "julia" / "test" / "nodevice.jl"

# A process of its own, since it takes from CUDA.jl what it does with a device. Graphs come in, and go out what is wrong
# with each, and how many kernels were compiled that no graph had before.
COMPILES = """
import json, sys
from pynode.engine.julia import runtime
runtime.start()
import juliacall
julia = juliacall.Main
BAD = "CUDA.zeros(Float64, 3) .= (x -> Base.inferencebarrier(sin)(x)::Float64).(CUDA.zeros(Float64, 3)); 1"
if julia.seval('Base.identify_package("CUDA") === nothing'):
    print(json.dumps("the Julia environment has no CUDA.jl"), flush=True)
    sys.exit()
julia.seval("import CUDA")
julia.include(sys.argv[1])
julia.seval("CUDA.allowscalar(false)")
print(json.dumps(""), flush=True)
for line in sys.stdin:
    graph, batch = json.loads(line)
    try:
        found = ["", int(julia.NoDevice.compile_field(graph, batch) if graph else julia.seval(BAD))]
    except juliacall.JuliaError as e:
        found = [str(e), 0]
    print(json.dumps(found), flush=True)
print(str(julia.NoDevice.kinds()), file=sys.stderr)
"""

pytestmark = [
    pytest.mark.julia,
    pytest.mark.exhaustive,  # half a second for each kernel
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which kernels are compiled when they run"),
]


@pytest.fixture(scope="module")
def compiles() -> Iterator[Callable[[str, int], tuple[str, int]]]:
    """Compiles the kernels of a graph for a batch size: what is wrong with them, and how many are new."""
    command = [sys.executable, "-c", COMPILES, str(NO_DEVICE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, answers = process.stdin, process.stdout
        if why := json.loads(answers.readline()):
            pytest.skip(why)

        def ask(graph: str, batch: int) -> tuple[str, int]:
            told.write(json.dumps([graph, batch]) + "\n")
            wrong, found = json.loads(answers.readline())
            return wrong, found

        yield ask


def test_a_kernel_that_no_gpu_can_run(compiles: Callable[[str, int], tuple[str, int]]) -> None:
    """A call of a function that is not known before it runs is found."""
    wrong, _ = compiles("", 3)
    assert "InvalidIRError" in wrong
    assert "dynamic function invocation" in wrong


@pytest.mark.parametrize("name", sorted(CASES))
def test_kernels_compile_for_a_gpu(name: str, compiles: Callable[[str, int], tuple[str, int]]) -> None:
    """Every program of a kind of field: its value, records and products; or it is refused before any solve."""
    case = CASES[name]()
    graph = sample(case, case.batches[0]).found.graph
    wrong, _ = compiles(json.dumps(graph.to_dict()), case.batches[0] if graph.batch is not None else 40)
    try:
        Device(0, SimpleNamespace(device="cuda:0")).check_operations(graph)
    except EngineUnavailable:
        assert "InvalidIRError" in wrong
    else:
        assert not wrong
