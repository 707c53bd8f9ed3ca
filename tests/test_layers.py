"""Who imports whom: every module against one ordered list of rooms, and no cycles."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pyro_naf

PACKAGE = Path(pyro_naf.__file__).parent

#: A room imports from itself and from those before it. "" is the package's own __init__.
ROOMS = [
    "files",
    "atomic",
    "support",
    "formulas",
    "rootfinding",
    "kernels",
    "transformers",
    "conditioners",
    "flows",
    "transforms",
    "",
    "training",
    "examples",
    "eight_schools",
    "guides",
    "plot",
    "plotting",
    "infer",
    "density",
    "cli",
    "__main__",
]


def name_of(path: Path) -> str:
    """Dotted name below the package; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


@functools.cache
def imported(module: str) -> frozenset[str]:
    """The modules of the package that a module imports: at once, in a function, or for types."""
    path = MODULES[module]
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    found: set[str] = set()
    while nodes:
        node = nodes.pop()
        found |= set(_named(node, module, path.stem == "__init__"))
        nodes += ast.iter_child_nodes(node)
    return frozenset(found - {module})


def _named(node: ast.AST, module: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        names = [alias.name.split(".") for alias in node.names]
        return [".".join(name[1:]) for name in names if name[0] == "pyro_naf"]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = module.split(".") if module else []
    up = node.level - is_package
    base = parents[: len(parents) - up] if node.level else []
    base += (node.module or "").split(".") if node.module else []
    if not node.level:
        if base[0] != "pyro_naf":
            return []
        base = base[1:]
    whole = [".".join([*base, alias.name]) for alias in node.names]
    return [name if name in MODULES else ".".join(base) for name in whole]


def room(module: str) -> str:
    return module.partition(".")[0]


def test_the_list_names_every_room_and_no_other() -> None:
    assert set(ROOMS) == set(map(room, MODULES)) and len(set(ROOMS)) == len(ROOMS)


def test_the_parser_sees_imports_of_every_kind() -> None:
    assert "kernels.compiled" in imported("kernels")
    assert "kernels.triton" in imported("kernels")  # from . import triton
    assert "files.atomic" in imported("support.command_line")
    assert "kernels.triton.operators" in imported("kernels.triton")
    assert "" in imported("cli.report")  # import pyro_naf
    assert "infer" in imported("cli.report")  # if TYPE_CHECKING
    assert "plot.figures" in imported("infer.posterior")  # in a function


def test_rooms_are_imported_downwards_only() -> None:
    above = {
        (module, name)
        for module in MODULES
        for name in imported(module)
        if ROOMS.index(room(name)) > ROOMS.index(room(module))
    }
    assert not above


def test_no_import_comes_back_to_where_it_started() -> None:
    cycles = set()
    for module in MODULES:
        reached, waiting = set(), {module}
        while waiting:
            new = imported(waiting.pop()) - reached
            reached |= new
            waiting |= new
        cycles |= {module} & reached
    assert not cycles
