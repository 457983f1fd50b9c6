"""The `pynode` command: demo, doctor, solvers, trace, study, julia install, julia compile."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pynode import __version__
from pynode.cli import study, study_report
from pynode.errors import InputError, PyNODEError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; those of the process where `None`.

    Returns:
        The exit code: 0 done, 1 failed (e.g. an engine that is not there), 2 wrong use.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except InputError as error:
        return _fail(error, 2)
    except (PyNODEError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(error: object, code: int) -> int:
    print(f"pynode: error: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pynode", description="Neural differential equations for PyTorch, solved by Julia's SciML."
    )
    parser.add_argument("--version", action="version", version=f"pynode {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="train a neural ODE on handwritten digits, beside a ResNet",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    engines = ("auto", "torch", "julia")
    demo.add_argument("--engine", choices=engines, default="auto", help="which engine solves")
    demo.add_argument("--epochs", type=_positive, default=30, help="passes over the training images")
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of results and figures")
    demo.add_argument("--seed", type=int, default=0, help="of the split, the parameters and the batches")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="what is installed, what is missing, what mends it")
    doctor.add_argument("--json", action="store_true", help="as JSON, for a report of an error")
    doctor.add_argument("--time", action="store_true", help="also time import to first gradient, per engine")
    doctor.set_defaults(run=_doctor)

    solvers = commands.add_parser("solvers", help="list the solvers and the engines that have them")
    solvers.set_defaults(run=_solvers)

    trace = commands.add_parser(
        "trace", help="a field's operations, what is fused, what it costs, any batch size or one"
    )
    trace.add_argument("field", metavar="FILE.py:NAME", help="a class without arguments, an instance, or a function")
    shape = "features, e.g. 2 or 3,8,8"
    trace.add_argument(
        "--state", type=_shape, action="append", required=True, help=f"{shape}; again for each of a tuple"
    )
    trace.add_argument("--args", type=_shape, nargs="+", default=[], help=f"of conditioning tensors: {shape}")
    trace.add_argument("--batch", type=_positive, default=32, help="the batch size of the costs (default: 32)")
    trace.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")
    trace.set_defaults(run=_trace)

    studies = commands.add_parser("study", help="compare solvers, sensitivities, engines and packages")
    of_studies = studies.add_subparsers(title="actions", metavar="ACTION", required=True)
    study.add(of_studies)
    study_report.add(of_studies)

    julia = commands.add_parser("julia", help="manage the Julia side")
    actions = julia.add_subparsers(title="actions", metavar="ACTION", required=True)
    install = actions.add_parser(
        "install",
        help="install Julia and the packages of the julia engine",
        description="Install Julia and the packages of the julia engine. `--dry-run` says what is downloaded, from "
        "where, how large it is, where it goes, and how it is removed.",
    )
    install.add_argument("--dry-run", action="store_true", help="print the plan, change nothing")
    install.add_argument("--cuda", action="store_true", help="also CUDA.jl, to solve on a GPU")
    install.add_argument(
        "--locked", action="store_true", help="exactly the versions of Julia and packages that pynode was run with"
    )
    install.set_defaults(run=_julia_install)
    image = actions.add_parser("compile", help="make a system image, with which Julia starts faster (minutes)")
    image.add_argument("--dry-run", action="store_true", help="print where it would be, make nothing")
    image.add_argument(
        "--with", nargs="+", default=[], metavar="PACKAGE", dest="packages", help="further packages for it to hold"
    )
    image.set_defaults(run=_julia_compile)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"must be sizes with commas between them, such as 2 or 3,8,8, got {text!r}")
    return tuple(map(int, sizes))


def _demo(arguments: argparse.Namespace) -> int:
    from pynode.cli.demo import run

    run(arguments.engine, arguments.epochs, arguments.out, arguments.seed)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from pynode.cli.doctor import report

    return 0 if report(timing=arguments.time, as_json=arguments.json) else 1


def _solvers(arguments: argparse.Namespace) -> int:
    from pynode.engine.solvers import solvers
    from pynode.text import table

    header = ("name", "order", "step", "stiff", "engines", "OrdinaryDiffEq", "torchdiffeq", "for")
    rows = [
        (
            s.name,
            s.order,
            "adaptive" if s.adaptive else "fixed",
            "yes" if s.stiff else "no",
            ", ".join(s.engines),
            s.julia or "-",
            s.torch or "-",
            s.purpose,
        )
        for s in solvers()
    ]
    print(table(header, rows))
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from pynode.cli.trace import report

    print(report(arguments.field, arguments.state, arguments.args, arguments.batch, arguments.dtype))
    return 0


def _julia_install(arguments: argparse.Namespace) -> int:
    from pynode.engine.julia.install import install

    print(install(dry_run=True, cuda=arguments.cuda, locked=arguments.locked), flush=True)
    if not arguments.dry_run:
        with _log_shown():
            install(cuda=arguments.cuda, locked=arguments.locked)
        print("installed: `pynode doctor` says what works")
    return 0


def _julia_compile(arguments: argparse.Namespace) -> int:
    from pynode.engine.julia.compile import compile_image

    image = compile_image(arguments.packages, dry_run=arguments.dry_run)
    print(image if arguments.dry_run else f"Julia starts with {image} from now on, until what it was made from changes")
    return 0


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    """Print what pynode logs, progress too."""
    logger, handler = logging.getLogger("pynode"), logging.StreamHandler(sys.stdout)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
