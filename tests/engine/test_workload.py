"""The graphs that PyNODE is compiled with are those to which their fields are traced now."""

import runpy

from pynode.engine.julia.runtime import julia_folder

WORKLOAD = julia_folder() / "src" / "workload"


def test_graphs_are_those_of_the_fields():
    graphs = runpy.run_path(str(WORKLOAD / "write.py"))["graphs"]()
    assert {path.stem for path in WORKLOAD.glob("*.json")} == graphs.keys()
    for name, text in graphs.items():
        assert (WORKLOAD / f"{name}.json").read_text(encoding="utf-8") == text, (
            f"the graph of {name} has changed: run julia/src/workload/write.py"
        )
    precompiled = (julia_folder() / "src" / "precompile.jl").read_text(encoding="utf-8")
    assert all(f'"{name}"' in precompiled for name in graphs)
