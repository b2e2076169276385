"""What an installation contains, what it puts in the way of others, and what it imports."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("passes", "kernels")


def run(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Runs Python in its own process, without what an outer xdist worker put into the environment."""
    command = [sys.executable, *map(str, arguments)]
    child = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, f"{command}\n{child.stdout[-4000:]}\n{child.stderr[-4000:]}"
    return child.stdout


def build_wheel(folder: Path) -> Path:
    """Builds from a copy, because setuptools leaves a build folder behind and packs what it finds there."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("dit_compile", *LINKED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        archive.extractall(tmp_path / "site")

    assert {name.split("/")[0] for name in packed if ".dist-info/" not in name} == {"dit_compile"}
    assert "dit_compile/py.typed" in packed
    for name in LINKED:
        sources = {f"dit_compile/{name}/{path.relative_to(ROOT / name)}" for path in (ROOT / name).rglob("*.py")}
        assert sources and sources <= packed
    model = ROOT / "dit_compile" / "demo" / "emoji_flux"
    data = {str(path.relative_to(ROOT)) for path in model.rglob("*") if path.is_file()}
    assert data and data <= packed
    assert {Path(name).name for name in packed if ".dist-info/licenses/" in name} == {"LICENSE", "NOTICE"}
    scripts = next(name for name in packed if name.endswith("entry_points.txt"))
    lines = (tmp_path / "site" / scripts).read_text(encoding="utf-8").split("\n")
    assert "dit-compile = dit_compile.cli:app" in lines and "dit_cache = dit_compile.backend:dit_cache" in lines

    program = """if True:
        import importlib, pathlib, sys
        for name in ("dit_compile", "dit_compile.config", "dit_compile.passes.plan", "dit_compile.kernels.probe"):
            file = importlib.import_module(name).__file__
            assert pathlib.Path(file).is_relative_to(sys.argv[1]), file
    """
    run("-c", program, tmp_path / "site", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))


@pytest.mark.parametrize("name", LINKED)
def test_links_resolve(name: str) -> None:
    link = ROOT / "dit_compile" / name
    assert link.is_symlink(), "check out with core.symlinks=true"
    assert link.readlink() == Path("..") / name and link.resolve() == ROOT / name
    assert not (ROOT / name / "__init__.py").exists(), f"{name} must not be an import name of its own"


def test_entry_points() -> None:
    (backend,) = importlib.metadata.entry_points(group="torch_dynamo_backends", name="dit_cache")
    assert backend.value == "dit_compile.backend:dit_cache"
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="dit-compile")
    assert script.value == "dit_compile.cli:app"
    assert callable(backend.load()) and callable(script.load())


def test_torch_finds_the_backend_without_importing_it() -> None:
    program = """if True:
        import sys, torch
        assert "dit_cache" in torch._dynamo.list_backends()
        assert "dit_compile" not in sys.modules
        assert callable(torch._dynamo.lookup_backend("dit_cache"))
    """
    run("-c", program)


def test_kernels_at_the_root_is_hugging_face() -> None:
    program = """if True:
        import pathlib, sys, kernels
        assert callable(kernels.get_kernel)
        assert not pathlib.Path(kernels.__file__).is_relative_to(sys.argv[1])
        try:
            import passes
        except ModuleNotFoundError:
            pass
        else:
            assert passes.__file__ is None  # a bare folder on sys.path, which any real package precedes
    """
    run("-c", program, ROOT / "kernels")


def test_import_is_light() -> None:
    program = """if True:
        import sys, dit_compile
        heavy = {"diffusers", "transformers", "triton", "matplotlib", "skimage", "rich", "typer"} & set(sys.modules)
        assert not heavy, heavy
    """
    run("-c", program, cwd=ROOT / "tests")


def test_torch_logs_can_name_the_package() -> None:
    run("-c", "import torch, logging; assert logging.getLogger('dit_compile').level == 10", TORCH_LOGS="+dit_compile")
