"""What is shipped: the contents of sdist and wheel, the declarations of dependencies, an installed wheel at work."""

import ast
import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import trove_classifiers
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
JULIA = tomllib.loads((ROOT / "julia" / "Project.toml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
BIN = "Scripts" if os.name == "nt" else "bin"


def run(*command, **keywords):
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=500, check=False, **keywords
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- declarations --------------------------------------------------------------------------------------------


def _imported(path):
    """Top-level packages that a Python file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def _names(requirements):
    return {re.match(r"[\w.-]+", r).group().lower() for r in requirements}


def test_every_import_is_declared_and_every_declaration_is_used():
    distribution = {"sklearn": "scikit-learn"}
    imported = {name for path in (ROOT / "pynode").rglob("*.py") for name in _imported(path)}
    third_party = {distribution.get(n, n) for n in imported - set(sys.stdlib_module_names) - {"pynode"}}
    extras = PROJECT["project"]["optional-dependencies"]
    required = _names(PROJECT["project"]["dependencies"])
    # juliapkg is juliacall's own dependency, and comes with it; tomllib comes with Python from 3.11 on
    optional = set().union(*(_names(extras[x]) for x in ("plot", "sde", "study")))
    assert third_party - {"juliapkg", "tomllib"} <= required | optional
    assert required <= third_party


def test_dependencies_are_declared_in_one_place():
    files = {p.name for p in ROOT.iterdir()}
    assert not {name for name in files if re.fullmatch(r"(requirements.*|environment.*|setup\.(py|cfg)|Pipfile)", name)}
    assert "pynode-sciml[plot,sde,study]" in PROJECT["project"]["optional-dependencies"]["test"]


def _used(path):
    """Packages that a Julia file loads with `using` or `import`."""
    for line in path.read_text().splitlines():
        match = re.match(r"\s*(?:using|import)\s+(.*)", line.split("#")[0])
        if match:
            for part in match.group(1).split(":")[0].split(","):
                name = part.strip().split(".")[0].split(" ")[0]
                if name:  # relative imports start with a dot
                    yield name


def test_every_package_that_the_julia_sources_use_is_declared():
    declared = {*JULIA["deps"], *JULIA.get("weakdeps", {}), JULIA["name"]}
    for path in [*(ROOT / "julia" / "src").rglob("*.jl"), *(ROOT / "julia" / "ext").rglob("*.jl")]:
        assert set(_used(path)) - {"Base", "Core"} <= declared, path
    standard = {"LinearAlgebra", "Random", "Statistics", "SparseArrays", "Test", "Printf", "Logging"}
    assert set(JULIA["deps"]) - standard <= set(JULIA["compat"]), "every dependency needs a compat bound"


def test_one_logger_is_pynodes():
    """Others are only torch's, which are silenced."""
    for path in (ROOT / "pynode").rglob("*.py"):
        for name in re.findall(r"getLogger\((.*?)\)", path.read_text()):
            assert name == '"pynode"' or name.startswith('f"torch.'), path


def test_versions_agree():
    import pynode

    assert JULIA["version"] == pynode.__version__
    assert f"## [{pynode.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert CITATION["version"] == pynode.__version__


def test_addresses_agree():
    source = PROJECT["project"]["urls"]["Source"]
    assert CITATION["repository-code"] == source
    assert all(url.startswith(source) for url in PROJECT["project"]["urls"].values())
    (links,) = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]
    assert links["replacement"] == f"]({source}/blob/main/\\1)"


def test_classifiers_are_registered():
    """An index refuses what it does not know."""
    assert set(PROJECT["project"]["classifiers"]) <= trove_classifiers.classifiers


def test_every_dependency_has_its_licence_listed():
    rows = re.findall(r"^\| ([\w-]+)", (ROOT / "docs" / "licences.md").read_text(), flags=re.M)
    extras = PROJECT["project"]["optional-dependencies"]
    named = PROJECT["project"]["dependencies"] + extras["plot"] + extras["study"]
    assert _names(named) == {row.lower() for row in rows} - {"package", "library", "fftw", "intel"}


def test_hints_name_the_distribution():
    name = PROJECT["project"]["name"]
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "pynode").rglob("*.py")]:
        for hint in re.findall(r"""pip\s+install\s+["']([\w-]+)\[""", path.read_text()):
            assert hint == name, path


@pytest.mark.parametrize("folder", ["julia", "tests", "examples", "benchmarks", "pynode"])
def test_no_juliapkg_json_below_the_root(folder):
    """juliapkg merges every one that lies one level below the working directory."""
    assert list((ROOT / folder).rglob("juliapkg.json")) == []


# -- sdist and wheel -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of the checkout, and the wheel built from that sdist alone."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def _tracked(*patterns):
    """Files in the checkout, less what tools leave there."""
    return {
        path.relative_to(ROOT).as_posix()
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_sdist_contains_sources_and_tests(built):
    with tarfile.open(built[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = _tracked("pynode/**/*", "julia/src/**/*", "julia/test/**/*.jl", "tests/**/*.py", "examples/*.py")
    assert expected <= names
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "julia/Project.toml"} <= names
    assert {"CITATION.cff", "CONTRIBUTING.md", "mkdocs.yml", "noxfile.py", "docs/licences.md", ".ci/run"} <= names
    assert {n for n in names if n.endswith("Manifest.toml")} == {"julia/lock/Manifest.toml"}
    assert {"julia/lock/Project.toml", "julia/lock/write.jl"} <= names
    assert not {n for n in names if n.endswith((".pyc", ".env"))}


@pytest.mark.slow
def test_wheel_contains_exactly_the_package_and_the_julia_sources(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        shipped = tomllib.loads(archive.read("pynode/_julia/Project.toml").decode())
    sources = _tracked("julia/src/**/*", "julia/ext/**/*.jl", "julia/Project.toml", "julia/lock/*.toml")
    julia = {f"pynode/_{name}" for name in sources}
    assert names == _tracked("pynode/**/*") | julia
    assert shipped == JULIA
    assert "pynode/py.typed" in names
    for extension in JULIA.get("extensions", {}):
        assert any(name.startswith(f"pynode/_julia/ext/{extension}") for name in names)


@pytest.mark.slow
def test_metadata_are_those_of_an_index(built):
    with zipfile.ZipFile(built[1]) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_string(archive.read(path).decode())
    assert metadata["Name"] == "pynode-sciml"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    readme, source = metadata.get_payload(), PROJECT["project"]["urls"]["Source"]
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert f"{source}/blob/main/docs/index.md" in links
    assert all(link.startswith("https://") for link in links)
    for link in links:
        if link.startswith(f"{source}/blob/main/"):
            assert (ROOT / link.removeprefix(f"{source}/blob/main/")).exists(), link


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A virtual environment with the wheel; its dependencies are those of the environment that runs the tests."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = home / BIN / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[1])
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(packages) / "dependencies.pth").write_text("\n".join(here))
    return home


def _bare_environment():
    """The environment without the checkout on the path, and without a Julia of the user's own."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("PYTHON_JULIACALL_")}


@pytest.mark.slow
def test_installed_wheel_runs_the_demo(installed, tmp_path):
    """Run away from the checkout, so that nothing but the wheel can be imported."""
    environment = _bare_environment()
    where = run(
        installed / BIN / "python", "-c", "import pynode; print(pynode.__file__)", cwd=tmp_path, env=environment
    )
    assert Path(where.strip()).is_relative_to(installed)
    command = (installed / BIN / "pynode", "demo", "--engine", "torch", "--epochs", "1", "--out", tmp_path / "out")
    assert "NODE" in run(*command, cwd=tmp_path, env=environment)
    assert (tmp_path / "out" / "results.json").exists()


@pytest.mark.slow
def test_installed_wheel_finds_its_julia_sources(installed, tmp_path):
    environment = _bare_environment()
    stdout = run(installed / BIN / "pynode", "julia", "install", "--dry-run", cwd=tmp_path, env=environment)
    sources = next(installed.rglob("pynode/_julia"))
    assert str(sources) in stdout
    assert (sources / "src" / "PyNODE.jl").is_file()
