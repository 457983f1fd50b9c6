"""The tests on what users install: the wheel and the sdist, each in a fresh environment, for each Python there is."""

import tarfile
from pathlib import Path

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """Test an installed wheel; further arguments go to pytest."""
    run_tests(session, "*.whl")


@nox.session(python=PYTHONS)
def sdist(session: nox.Session) -> None:
    """Test what pip builds of the sdist; further arguments go to pytest."""
    run_tests(session, "*.tar.gz")


def run_tests(session: nox.Session, kind: str) -> None:
    """Install what is built, with what the tests need, and run the tests of the sdist beside it."""
    folder = Path(session.create_tmp()).resolve()
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(folder))
    (archive,), (built,) = folder.glob("*.tar.gz"), folder.glob(kind)
    session.install(f"pynode-sciml[test] @ {built.as_uri()}")
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    session.chdir(folder / archive.name.removesuffix(".tar.gz"))
    inside = "import pynode, sysconfig; assert pynode.__file__.startswith(sysconfig.get_path('purelib')), pynode"
    session.run("python", "-I", "-c", inside)
    session.run("pytest", *session.posargs)
