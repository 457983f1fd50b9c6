"""The one place that starts Julia: lazily, through juliacall, on the main thread of the process that asked.

Once it runs, any thread may call it, one at a time: see `alone`.

Julia is found through the environment variables `PYTHON_JULIACALL_EXE` and `PYTHON_JULIACALL_PROJECT`, or in the
environment that `install` has made with juliapkg. Nothing is ever installed without being asked for.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from pynode.engine.julia import environment, image, signals
from pynode.engine.julia.environment import juliapkg_project
from pynode.engine.protocol import Availability
from pynode.errors import EngineUnavailable, PyNODEError
from pynode.interrupts import deferred

__all__ = [
    "BRIDGE",
    "LOCK",
    "PYNODE_UUID",
    "UNCLAIMED",
    "alone",
    "available",
    "available_with",
    "evaluate",
    "installed",
    "julia_folder",
    "module",
    "open_cuda",
    "start",
]

logger = logging.getLogger("pynode")

PYNODE_UUID = "6f1c7d0e-53f0-4a7b-9d6e-0c7c4f5a8b21"

# What crosses to Julia, and how; PyNODE.jl has the same number (`BRIDGE` in entries.jl).
BRIDGE = 12

# Where Julia writes the number of the solve that it has kept last; 0 once a `Kept` has it.
UNCLAIMED = (ctypes.c_int64 * 1)()

_INSTALL = "Run `pynode julia install`, or set PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT"

_UNSAFE = "Julia cannot stop its threads to collect its garbage while it may not handle signals"
_SAFE = "Set PYTHON_JULIACALL_HANDLE_SIGNALS=yes (Ctrl-C stays Python's), or PYTHON_JULIACALL_THREADS=1"

# What juliacall reads when it starts Julia; what the user has set stays.
_DEFAULTS = {
    "PYTHON_JULIACALL_HANDLE_SIGNALS": "yes",
    "PYTHON_JULIACALL_STARTUP_FILE": "no",
    "PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION": "no",
    "PYTHON_JULIAPKG_OFFLINE": "yes",
}


def julia_folder() -> Path:
    """The folder of the Julia package PyNODE: inside an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[2]
    shipped = package / "_julia"
    return shipped if shipped.exists() else package.parent / "julia"


def available() -> Availability:
    """Whether Julia with PyNODE can be started here. Starts nothing and installs nothing."""
    state = installed()
    return image.check_named() if state.ok else state


def installed() -> Availability:
    """Whether Julia with PyNODE is there, whatever image it is to start with."""
    if importlib.util.find_spec("juliacall") is None:
        return Availability(False, "the Python package juliacall is not installed", "Run `pip install juliacall`")
    name = "PYTHON_JULIACALL_THREADS" if "PYTHON_JULIACALL_THREADS" in os.environ else "JULIA_NUM_THREADS"
    threads = os.environ.get(name, "1")
    if threads != "1" and os.environ.get("PYTHON_JULIACALL_HANDLE_SIGNALS") == "no":
        return Availability(False, f"{name} is {threads}, and {_UNSAFE}", _SAFE)
    exe, project = os.environ.get("PYTHON_JULIACALL_EXE"), os.environ.get("PYTHON_JULIACALL_PROJECT")
    if exe and project:
        return _check_given(exe, Path(project))
    if exe or project:
        missing = "PYTHON_JULIACALL_PROJECT" if exe else "PYTHON_JULIACALL_EXE"
        return Availability(False, f"only one of Julia's two variables is set, {missing} is not", f"Set {missing} too")
    made = environment.read(juliapkg_project())
    if not (made.folder / "pyjuliapkg" / "meta.json").exists() or not _has_pynode(made):
        return Availability(False, made.broken or "no Julia with the package PyNODE was found", _INSTALL)
    return Availability(True) if _bridges(made) else Availability(False, _other_bridge(made), _remedy())


def available_with(package: str) -> Availability:
    """Whether Julia with PyNODE and a further package can be started here. Starts and installs nothing."""
    state, exe = available(), os.environ.get("PYTHON_JULIACALL_EXE")
    if not state.ok:
        return state
    given = os.environ.get("PYTHON_JULIACALL_PROJECT")
    found = environment.read(Path(given) if given else juliapkg_project())
    if package in found.versions:
        return state
    command = f"{exe} --project={found.folder} -e 'using Pkg; Pkg.add(\"{package}\")'" if given else ""
    fix = f"Run: {command}" if command else "Run `pynode julia install`"
    return Availability(False, f"the Julia environment {found.folder} does not have the package {package}", fix)


def _check_given(exe: str, project: Path) -> Availability:
    if shutil.which(exe) is None:
        return Availability(
            False, f"PYTHON_JULIACALL_EXE is {exe!r}, which is not an executable file", "Set it to Julia's executable"
        )
    found, command = environment.read(project), _develop(exe, project)
    if not _bridges(found):
        fix = f"Run `pip install juliacall=={found.versions['PythonCall']}`"
        return Availability(False, _other_bridge(found), fix)
    if not _has_pynode(found):
        why = found.broken or f"the Julia environment {project} does not have the package PyNODE"
        return Availability(False, why, f"Run: {command}")
    sources = found.sources("PyNODE")
    if sources and not sources.exists():
        return Availability(
            False,
            f"the Julia environment {project} has PyNODE in the folder {sources}, which is not there",
            f"Run: {command}",
        )
    return Availability(True)


def _bridges(found: environment.Environment) -> bool:
    """Whether an environment's PythonCall, where it has one, is that of the juliacall that is installed."""
    return found.versions.get("PythonCall") in (None, importlib.metadata.version("juliacall"))


def _other_bridge(found: environment.Environment) -> str:
    return (
        f"the Julia environment {found.folder} has PythonCall {found.versions['PythonCall']}, which needs the same "
        f"version of juliacall, and juliacall {importlib.metadata.version('juliacall')} is installed"
    )


def _has_pynode(found: environment.Environment) -> bool:
    return found.packages.get("PyNODE", {}).get("uuid") == PYNODE_UUID


def _develop(exe: str, project: Path) -> str:
    """The command that makes an environment have the PyNODE that belongs to this package, and all that it needs."""
    steps = f'using Pkg; Pkg.develop(path="{julia_folder()}"); Pkg.resolve(); Pkg.instantiate()'
    return f"{exe} --project={project} -e '{steps}'"


def _remedy() -> str:
    """What mends an environment of Julia's that does not work."""
    exe, project = os.environ.get("PYTHON_JULIACALL_EXE"), os.environ.get("PYTHON_JULIACALL_PROJECT")
    return f"Run: {_develop(exe, Path(project))}" if exe and project else "Run `pynode julia install`"


_runs, _forked = False, False  # whether Julia runs, and whether that is in the process that this one was forked from


def _note_fork() -> None:
    global _forked
    _forked = True


def start() -> None:
    """Start Julia, once; from now on it has as many threads at work as torch.

    Raises:
        EngineUnavailable: Julia is not there, it does not run yet and this is not the main thread, or the process was
            forked from one that had started Julia.
    """
    if _forked:
        raise EngineUnavailable(
            "this process was forked from one in which Julia runs, and Julia does not survive a fork: start worker "
            'processes with multiprocessing.get_context("spawn"), or use engine="torch" in them'
        )
    if not _runs and threading.current_thread() is not threading.main_thread():
        raise EngineUnavailable(
            "Julia has to be started on the main thread, and other threads may use it then: make one solve there "
            'first, or use engine="torch" in other threads'
        )
    if not _runs:
        with deferred():
            _start()
    if torch.get_num_threads() != _threads:
        _follow_torch()


def module() -> Any:
    """The Julia module PyNODE as juliacall has it; starts Julia where it does not run yet.

    The first call of a function of it takes a second, in which Julia compiles how arguments and results are converted.

    Raises:
        EngineUnavailable: as `start`.
    """
    start()
    import juliacall

    return juliacall.Main.PyNODE


_threads = 0  # torch's, as Julia was told last


def _follow_torch() -> None:
    """Let Julia work on as many threads as torch does on this thread, or fewer.

    Samples are shared out over as many of Julia's threads at most; how many Julia has was settled at its start. BLAS
    has as many of its own, unless the user has said how many. So processes side by side share a machine as torch's do.
    """
    global _threads
    with LOCK:
        threads = torch.get_num_threads()
        with_blas = "true" if "OPENBLAS_NUM_THREADS" not in os.environ else "false"
        evaluate(f"PyNODE.set_threads({threads}, {with_blas})")
        _threads = threads


_ROOM = 2**16  # bytes of what Julia prints, at most
_evaluate: Callable[..., int] | None = None  # Julia's `evaluate_code`, once it runs


def evaluate(code: str) -> str:
    """What Julia prints of the value of its code. Julia runs.

    Raises:
        PyNODEError: the code ended in an error.
    """
    assert _evaluate is not None
    text, answer = code.encode(), ctypes.create_string_buffer(_ROOM)
    written = _evaluate(text, len(text), answer, _ROOM)
    if written < 0:
        raise PyNODEError(f"Julia failed: {evaluate('PyNODE.last_error()')}")
    return answer.raw[:written].decode(errors="replace")


LOCK = threading.RLock()

F = TypeVar("F", bound=Callable[..., Any])


def alone(function: F) -> F:
    """Decorator of what works with Julia: one thread at a time, since Julia's workspaces are shared."""

    @functools.wraps(function)
    def locked(*args: Any, **keywords: Any) -> Any:
        with LOCK:
            return function(*args, **keywords)

    return cast(F, locked)


_failure: str | None = None  # of Julia's start, which cannot be tried again in the same process


def _start() -> None:
    global _runs, _evaluate
    if _failure is not None:
        raise EngineUnavailable(_failure)
    state = available()
    if not state.ok:
        raise EngineUnavailable(f"the julia engine is not available here: {state.why}. {state.fix}")
    _set_defaults()
    began = time.perf_counter()
    with _threads_of_torch(), image.started_with():
        juliacall = _import_juliacall()
    library = _library(juliacall)
    error = _import_pynode(library)
    if error:
        raise EngineUnavailable(
            f"Julia {juliacall.Main.VERSION} started, but PyNODE could not be loaded: {error}. {_remedy()}"
        )
    bridge = _number(library, "isdefined(PyNODE, :BRIDGE) ? PyNODE.BRIDGE : 0")
    if bridge != BRIDGE:
        folder = juliacall.Main.seval("pkgdir(PyNODE)")
        raise EngineUnavailable(
            f"the Julia package PyNODE in {folder} does not belong to this version of pynode: its bridge is number "
            f"{bridge}, and {BRIDGE} is expected. {_remedy()}, and start Python again"
        )
    place = _number(library, "PyNODE.evaluate_entry_point()")
    integer, text = ctypes.c_int64, ctypes.c_char_p
    _evaluate = ctypes.CFUNCTYPE(integer, text, integer, text, integer)(place)
    if evaluate("PyNODE.cannot_stop_threads()") == "true":
        raise EngineUnavailable(
            f"Julia was started with several threads, and {_UNSAFE}. {_SAFE}, and start Python again"
        )
    exception, unclaimed = ctypes.addressof(signals.EXCEPTION), ctypes.addressof(UNCLAIMED)
    evaluate(f"PyNODE.serve({signals.functions()}, {exception}, {unclaimed})")
    _let_other_threads_collect()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_note_fork)
    _runs = True
    version, threads, seconds = evaluate("VERSION"), evaluate("Threads.nthreads()"), time.perf_counter() - began
    logger.info("Julia %s started in %.1f s, threads: %s", version, seconds, threads)


def _set_defaults() -> None:
    """Set what juliacall reads when it starts Julia, and juliapkg, so that neither installs anything by itself."""
    from juliapkg.state import STATE  # which is made of the environment when it is imported

    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    STATE["offline"] = os.environ["PYTHON_JULIAPKG_OFFLINE"] == "yes"


# Nanoseconds after which a thread of Julia's that has nothing to do goes to sleep. Waking it takes tens of
# microseconds, as long as many an operation that threads share; after Julia's own 100 µs it sleeps at each of them.
_AWAKE = "1000000"


@contextlib.contextmanager
def _threads_of_torch() -> Iterator[None]:
    """Julia is started with as many threads as torch has, awake for a while, where the user has not said otherwise."""
    chosen = {"JULIA_THREAD_SLEEP_THRESHOLD": _AWAKE}
    given = {"PYTHON_JULIACALL_THREADS", "JULIA_NUM_THREADS"} & os.environ.keys()
    if not given and os.environ["PYTHON_JULIACALL_HANDLE_SIGNALS"] != "no":
        chosen["PYTHON_JULIACALL_THREADS"] = str(torch.get_num_threads())
    chosen = {name: value for name, value in chosen.items() if name not in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            del os.environ[name]


def _import_juliacall() -> Any:
    """Import juliacall, which starts Julia; signals stay Python's."""
    global _failure
    try:
        # juliacall warns of torch being imported first; both orders are tested.
        with signals.kept(started="juliacall" in sys.modules), _blocking_kept(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch was imported before juliacall")
            import juliacall
    except BaseException as error:
        said = (getattr(error, "stderr", None) or "").strip() or str(error)
        why = f"Julia could not be started: {said}. {_remedy()}"
        if hasattr(ctypes.PyDLL(None), "jl_is_initialized"):
            _failure = f"{why}, and start Python again"
        if isinstance(error, Exception):
            raise EngineUnavailable(_failure or why) from error
        raise
    return juliacall


def _library(juliacall: Any) -> ctypes.PyDLL:
    """Julia's library."""
    found = juliacall.CONFIG.get("lib")  # not where Julia has started Python
    return found or ctypes.PyDLL(str(juliacall.Main.seval('Base.Libc.Libdl.dlpath("libjulia")')))


def _number(library: ctypes.PyDLL, code: str) -> int:
    """The value of Julia code, an integer, by Julia's C interface: juliacall's way has Julia compile for a second."""
    library.jl_eval_string.argtypes, library.jl_eval_string.restype = [ctypes.c_char_p], ctypes.c_void_p
    library.jl_unbox_int64.argtypes, library.jl_unbox_int64.restype = [ctypes.c_void_p], ctypes.c_int64
    value = library.jl_eval_string(code.encode())
    if value is None:
        raise PyNODEError(f"Julia could not evaluate {code!r}")
    return int(library.jl_unbox_int64(value))


def _import_pynode(library: ctypes.PyDLL) -> str:
    """Load the package PyNODE; what Julia says where it cannot be, nothing where it can.

    Meanwhile Julia does not collect its garbage, 150 MB, which takes a fifth of the time.
    """
    answer = ctypes.create_string_buffer(_ROOM)
    memory = f"Ptr{{UInt8}}({ctypes.addressof(answer)})"
    length = _number(
        library,
        f"""
        GC.enable(false)
        try
            import PyNODE
            0
        catch error
            let said = sprint(showerror, error), n = min(sizeof(said), {_ROOM})
                GC.@preserve said unsafe_copyto!({memory}, pointer(said), n)
                n
            end
        finally
            GC.enable(true)
        end
        """,
    )
    return answer.raw[:length].decode(errors="replace")


@contextlib.contextmanager
def _blocking_kept() -> Iterator[None]:
    """Python's standard streams wait for a pipe as before: Julia's input and output make them return at once.

    Of such a pipe `input()` finds nothing, and `print` fails where the reader is slow.
    """
    before: dict[int, bool] = {}
    if hasattr(os, "set_blocking"):
        for stream in range(3):
            with contextlib.suppress(OSError):  # it is closed
                before[stream] = os.get_blocking(stream)
    try:
        yield
    finally:
        for stream, blocking in before.items():
            os.set_blocking(stream, blocking)


def _let_other_threads_collect() -> None:
    """Tell Julia that this thread is in its code only while a call of it is under way.

    Julia's garbage collector waits until every thread that it knows is at a safe point. The thread that started Julia
    counts as running Julia's code even while it is in Python's, so that a collection in another thread would wait for
    ever. Every call into Julia takes the thread out of this state and puts it back.
    """
    library = ctypes.PyDLL(evaluate('Base.Libc.Libdl.dlpath("libjulia-internal")'))
    library.jl_gc_safe_enter.restype = ctypes.c_int8
    library.jl_gc_safe_leave.argtypes = [ctypes.c_int8]
    before = library.jl_gc_safe_enter()
    # Julia's own code at the end of the process, which runs after this, is called without such a change.
    atexit.register(library.jl_gc_safe_leave, before)


def open_cuda(index: int) -> int:
    """Let Julia work on a GPU, and return the handle of the stream on which it does.

    Raises:
        EngineUnavailable: Julia is not there, or has no CUDA.jl, or finds no GPU.
    """
    start()
    import juliacall

    otherwise = 'Or move the field and the state to the CPU, or use engine="torch"'
    try:
        juliacall.Main.seval('(id = Base.identify_package("CUDA")) === nothing || PyNODE.load((id,)); import CUDA')
    except juliacall.JuliaError as error:
        raise EngineUnavailable(
            f"the state is on cuda:{index}, and Julia could not load the package CUDA: {error.exception}. Run `pynode "
            f"julia install --cuda`, or add CUDA to your own Julia environment. {otherwise}"
        ) from error
    if not juliacall.Main.CUDA.functional():
        raise EngineUnavailable(
            f"the state is on cuda:{index}, and Julia's package CUDA finds no GPU that works: `CUDA.versioninfo()` "
            f"in Julia says why. {otherwise}"
        )
    return int(module().open_cuda(index))
