"""The walls of the house: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "igd"

# module -> what it may import of igd, a package or one module of it; "*" is anything
ALLOWED = {
    "igd": "",
    "errors": "",
    "config": "errors",
    "records": "errors",
    "storage": "errors",
    "data": "errors config records storage",
    "model": "errors config",
    "train": "errors config model",
    "registry": "errors config records storage model",
    "score": "errors config records data model registry",
    "tables": "errors records storage",
    "report": "errors records tables score",
    "serve": "errors config records data score registry",
    "client": "errors serve.schemas",
    "pipelines": "*",
    "demo": "*",
    "cli": "*",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def owner(path: Path) -> str:
    """The row of the table that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "igd" if parts == ("__init__",) else parts[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names a file imports, and whether at module level."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body)) | {
        id(node) for guard in tree.body if isinstance(guard, ast.If) for node in guard.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "igd":
                yield from ((f"igd.{alias.name}", id(node) in top) for alias in node.names)
            else:
                yield node.module or "", id(node) in top


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    allowed = ALLOWED[owner(path)]
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "ray":
            assert owner(path) == "pipelines", f"{path} imports ray"
        if parts[0] != "igd" or len(parts) == 1 or parts[1] in (owner(path), "__version__"):
            continue
        assert allowed == "*" or {parts[1], ".".join(parts[1:3])} & set(allowed.split()), (
            f"{path} imports {name}")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_stand_at_the_top_except_in_the_command_line(path: Path) -> None:
    if owner(path) != "cli":
        assert all(at_top for _, at_top in imports(path)), path


@pytest.mark.parametrize("module", ["igd.config", "igd.records", "igd.cli"])
def test_light_modules_load_neither_torch_nor_ray(module: str) -> None:
    code = (f"import sys, {module}; heavy = {{'torch', 'ray'}} & set(sys.modules); "
            "sys.exit(str(heavy) if heavy else 0)")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_client_loads_nothing_of_what_it_asks() -> None:
    code = ("import sys, igd.client; "
            "heavy = {'torch', 'ray', 'fastapi', 'starlette', 'numpy', 'PIL'} & set(sys.modules); "
            "sys.exit(str(heavy) if heavy else 0)")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_reading_and_writing_shards_loads_no_torch() -> None:
    """Every reader of a run would pay a second and 200 MB for it."""
    code = "import sys, igd.pipelines.stages; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_training_one_category_in_process_needs_no_ray() -> None:
    code = "import sys, igd.pipelines.category; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
