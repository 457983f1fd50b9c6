"""Makes a system image of the julia engine's packages, with PackageCompiler, when that is asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pynode.engine.julia import environment, runtime
from pynode.engine.julia.environment import MANIFESTS, Environment
from pynode.engine.julia.image import image_of, record_of, write_record
from pynode.errors import EngineUnavailable, InputError

__all__ = ["compile_image"]

_ABSENT = 86  # exit code where Julia does not find PackageCompiler

# PythonCall stays out: it takes the Python that it works with when it is loaded, and an image loads all that it holds.
_BUILD = f"""
Base.identify_package("PackageCompiler") === nothing && exit({_ABSENT})
using PackageCompiler
project, image, packages... = ARGS
use = joinpath(project, "use.jl")
cpu_target = get(ENV, "JULIA_CPU_TARGET", "native")
precompile_execution_file = isfile(use) ? [use] : String[]
create_sysimage(packages; project, sysimage_path=image, cpu_target, precompile_execution_file)
"""

# What SciMLSensitivity's own image does not have. ReverseDiff's types, which compiled adjoints have in them, may crash
# Julia where it loads a package's image (JuliaLang/julia, issue 62047), and not in that of the whole system.
_ADJOINTS = """
stiff = Base.get_extension(PyNODE, :PyNODEStiffExt) === nothing ? () : ("Rodas5P",)
for solver in ("Tsit5", "DP5", stiff...), dtype in ("float32", "float64")
    foreach(name -> PyNODE.sample_run(dtype, solver, name), (:gauss, :interpolating, :quadrature, :backsolve))
end
"""


def compile_image(packages: Sequence[str] = (), dry_run: bool = False) -> Path:
    """Compile the julia engine's packages into a system image, with which Julia then starts by itself.

    It takes minutes, a C compiler, and some hundred megabytes. Julia's packages that are not in the image are
    compiled anew for it when they are first used.

    Args:
        packages: names of further packages of the environment, such as those of stiff solvers or continuous adjoints.
        dry_run: only say where it would be.

    Returns:
        The image, beside which lies a record of what it was made from.

    Raises:
        EngineUnavailable: Julia, PyNODE or PackageCompiler is not there, or the image could not be made.
        InputError: a package is not in the environment.
    """
    state = runtime.installed()
    if not state.ok:
        raise EngineUnavailable(f"there is no Julia to compile for: {state.why}. {state.fix}")
    exe, project = environment.executable(), environment.project_folder()
    if "PythonCall" in packages:
        raise InputError("PythonCall cannot be in an image: it takes the Python that it works with when it is loaded")
    there = environment.read(project)
    for name in packages:
        if name not in there.direct:
            raise InputError(f"the Julia environment {project} does not have the package {name}: add it there first")
    image = image_of(project)
    if dry_run:
        return image
    record, names = record_of(exe, project), ["PyNODE", *packages]
    made = image.with_name(f"new-{image.name}")
    variables = {**os.environ, "JULIA_PYTHONCALL_EXE": sys.executable, "JULIA_CONDAPKG_BACKEND": "Null"}
    with tempfile.TemporaryDirectory() as folder:
        _write_part(there, names, Path(folder))
        start = [exe, "--startup-file=no", f"--project={folder}"]
        done = subprocess.run([*start, "-e", _BUILD, folder, str(made), *names], env=variables, check=False)
    if done.returncode == _ABSENT:
        add = f"{exe} -e 'using Pkg; Pkg.add(\"PackageCompiler\")'"
        raise EngineUnavailable(f"an image is made by Julia's package PackageCompiler, which is not there. Run: {add}")
    if done.returncode or not made.exists():
        made.unlink(missing_ok=True)
        raise EngineUnavailable(
            f"the image could not be made: Julia ended with exit code {done.returncode}, and said why above. It needs "
            "a C compiler (gcc or clang), some gigabytes of memory, and the packages' sources"
        )
    made.replace(image)
    write_record(image, record)
    return image


def _write_part(whole: Environment, packages: Sequence[str], folder: Path) -> None:
    """Write an environment of these packages alone, at the versions of another: PackageCompiler compiles all of one."""
    named = "".join(f'{name} = "{whole.packages[name]["uuid"]}"\n' for name in packages)
    (folder / "Project.toml").write_text(f"[deps]\n{named}", encoding="utf-8")
    manifest = next(path for name in MANIFESTS if (path := whole.folder / name).is_file())
    here = re.sub(
        r'^path = "(.*)"$',
        lambda found: f'path = "{(whole.folder / found.group(1)).resolve().as_posix()}"',
        manifest.read_text(encoding="utf-8"),
        flags=re.M,
    )
    (folder / "Manifest.toml").write_text(here, encoding="utf-8")
    if "SciMLSensitivity" in packages:
        (folder / "use.jl").write_text(f"using {', '.join(packages)}\n{_ADJOINTS}", encoding="utf-8")
