"""The layout that CONTRIBUTING.md describes, held by reading the imports: who may import whom, how large a file is."""

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
# dit_compile/passes and dit_compile/kernels are links; the files are read where they are
FOLDERS = {
    "dit_compile": ROOT / "dit_compile",
    "dit_compile.passes": ROOT / "passes",
    "dit_compile.kernels": ROOT / "kernels",
}

# What a part may import of ours, itself included; parts that are not named may import anything but APPLICATIONS.
ALLOWED = {
    "compat": {"compat"},
    "plans": {"plans"},
    "readers": {"readers", "plans"},
    "config": {"config", "readers", "compat", "plans"},
    "registry": {"registry"},
    "kernels": {"kernels"},
    "passes": {"passes", "compat"},
    "policy": {"policy", "config", "registry"},
    "forecast": {"forecast", "config", "registry"},
    "plugins": {"plugins", "policy", "forecast", "config", "readers"},
    "runtime": {"runtime", "policy", "forecast", "kernels", "config", "readers", "registry", "compat", "plans"},
}
APPLICATIONS = {"cli", "demo"}
NO_TORCH = {"readers", "plans", "config", "registry", "policy", "forecast", "plugins"}

# Families of diffusers transformers and the names of their block lists: the graph is read, never the model.
MODEL_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        allegro auraflow bria chroma cogvideo cogvideox cogview consisid cosmos easyanimate flux glm helios hidream
        hunyuan kandinsky krea latte longcat ltx lumina mochi omnigen ovis pixart prx qwen sana sd3 skyreels vace wan
        zimage
        """,
    )
)
BLOCK_LISTS = {"transformer_blocks", "single_transformer_blocks", "temporal_transformer_blocks"}


def modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    found = {}
    for prefix, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder)
            if prefix == "dit_compile" and relative.parts[0] in ("passes", "kernels"):
                continue
            parts = [prefix, *relative.with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def part(module: str) -> str:
    """The part a module of ours belongs to: dit_compile.passes.plan is of passes, dit_compile itself is its own."""
    return [*module.split("."), "dit_compile"][1]


def statements(tree: ast.AST, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run, at the top or inside a function; with ``typing`` also those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif typing or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from statements(node, typing)


def imports(module: str, typing: bool = False) -> set[str]:
    """Full names of what a module imports: modules of ours where they are such, else what is written. With ``typing``
    also what only type checkers import."""
    is_package = MODULES[module].name == "__init__.py" or module in FOLDERS
    found = set()
    for node in statements(TREES[module], typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = module.split(".")
        base = base[: len(base) - node.level + is_package] if node.level else []
        source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            found.add(name if (name := f"{source}.{alias.name}") in MODULES else source)
    return found


IMPORTS = {module: imports(module) for module in MODULES}


def test_the_reader_sees_the_package() -> None:
    assert {"config", "passes", "kernels", "policy", "forecast", "runtime"} <= set(map(part, MODULES))
    assert "dit_compile.registry" in IMPORTS["dit_compile.policy.base"]
    assert "dit_compile.passes.plan" in IMPORTS["dit_compile.passes.plan_region"]


def listed(offences: Iterable[str]) -> str:
    """The message of a rule that is broken: every offence, one a line."""
    return "\n".join(["", *offences])


def forbidden(module: str) -> set[str]:
    """The parts of ours that a module imports and must not."""
    ours = {part(name) for name in IMPORTS[module] if name.split(".")[0] == "dit_compile"}
    here = part(module)
    return ours - ALLOWED[here] if here in ALLOWED else set() if here in APPLICATIONS else ours & APPLICATIONS


def roots(module: str) -> set[str]:
    """The top-level names that a module imports."""
    return {name.split(".")[0] for name in IMPORTS[module]}


def test_imports_point_one_way() -> None:
    offences = [f"{module} must not import {sorted(parts)}" for module in MODULES if (parts := forbidden(module))]
    assert not offences, listed(offences)


def test_links_are_imported_through_the_package() -> None:
    bare = {module: roots(module) & {"passes", "kernels"} for module in MODULES}
    offences = [f"{module} imports {name}, not dit_compile.{name}" for module in MODULES for name in bare[module]]
    assert not offences, listed(offences)


def test_parts_that_work_on_numbers_do_not_import_torch() -> None:
    numeric = {module for module in MODULES if part(module) in NO_TORCH}
    numeric -= {"dit_compile.config"}  # looks at Inductor's options, inside one function
    offences = [f"{module} imports torch" for module in sorted(numeric) if "torch" in roots(module)]
    assert not offences, listed(offences)


def private_names(tree: ast.Module) -> Iterator[str]:
    """Names of torch that begin with an underscore, such as ``torch._dynamo.config``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        yield from (name for name in names if re.match(r"torch\.(\w+\.)*_[a-z]", name))


def test_private_names_of_torch_stand_in_one_file() -> None:
    offences = [
        f"{module} uses {name}"
        for module, tree in TREES.items()
        if part(module) != "compat"
        for name in sorted(set(private_names(tree)))
    ]
    assert not offences, listed(offences)
    assert set(private_names(TREES["dit_compile.compat"]))


def test_no_import_cycles() -> None:
    graph = {module: {name for name in imports(module, typing=True) if name in MODULES} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_files_stay_readable() -> None:
    lines = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    offences = [f"{path} has {count} lines" for path, count in lines.items() if count > MAX_LINES]
    assert not offences, listed(offences)


def models_named(text: str) -> set[str]:
    """The words of a program that name a model, also inside longer names, comments and docstrings."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+[0-9]*|[A-Z]+[0-9]*(?![a-z])", text)}
    families = (words | {word.rstrip("0123456789") for word in words}) & MODEL_WORDS
    return families | (set(re.findall(r"\w+", text)) & BLOCK_LISTS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FluxTransformer2DModel", True),
        ("is_wan", True),
        ("QwenImage", True),
        ("LTX2", True),
        ("self.single_transformer_blocks", True),
        ("want", False),
        ("influx", False),
        ("transformer", False),
    ],
)
def test_the_reader_knows_models(text: str, expected: bool) -> None:
    assert bool(models_named(text)) is expected


def test_no_code_for_particular_models() -> None:
    texts = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    general = [module for module in MODULES if part(module) not in APPLICATIONS]
    offences = [f"{module} names {sorted(names)}" for module in general if (names := models_named(texts[module]))]
    assert not offences, listed(offences)
