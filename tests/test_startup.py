"""What importing pynode does not do, each in a process of its own."""

import subprocess
import sys

import pytest

HEAVY = (
    *("matplotlib", "sklearn", "scipy", "juliacall", "juliapkg", "torchdiffeq", "sympy", "jax"),
    *("pandas", "plotly", "jinja2", "pyarrow", "diffrax", "torchode", "torchdyn", "diffeqpy", "distributed"),
)


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


STATEMENTS = ("import pynode", "import pynode.cli, pynode.models, pynode.data, pynode.plot", "from pynode import study")


def test_imports_are_light():
    """What each brings, one after the other in one process."""
    look = f"print([m for m in {HEAVY!r} if m in sys.modules])"
    printed = python("\n".join(["import sys", *[f"{statement}\n{look}" for statement in STATEMENTS]])).splitlines()
    assert dict(zip(STATEMENTS, printed, strict=True)) == dict.fromkeys(STATEMENTS, "[]")


@pytest.mark.slow
def test_listing_solvers_and_asking_for_help_start_nothing():
    code = (
        "import sys, pynode.cli\n"
        "assert pynode.cli.main(['solvers']) == 0\n"
        "try: pynode.cli.main(['demo', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.slow
def test_import_leaves_torch_as_it_is():
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "state = lambda: (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), "
        "torch.get_rng_state().sum().item())\n"
        "before = state()\n"
        "import pynode, pynode.cli\n"
        "print(before == state())"
    )
    assert python(code).strip() == "True"


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "pynode", "--version"], capture_output=True, text=True, timeout=120, check=True
    )
    import pynode

    assert done.stdout.strip() == f"pynode {pynode.__version__}"
