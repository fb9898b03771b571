"""The model's code as flat files, which transformers loads as remote code, so that a folder works without mvlm."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import mvlm

ENTRIES = {
    "configuration_maskvlm": "mvlm.export.configuration",
    "modeling_maskvlm": "mvlm.export.modeling",
    "processing_maskvlm": "mvlm.export.processing",
}
"""File names, to which `auto_map` refers -> modules."""

EVERYWHERE = {"numpy", "PIL", "safetensors", "timm", "torch", "transformers"}
"""Packages that whoever loads the model has; transformers demands any others unless their import is in a `try`."""

ROOT = Path(mvlm.__file__).parent.parent


def remote_code() -> dict[str, str]:
    """File name -> content: the entries and all modules of ours that they import, each in one file of a flat folder."""
    files: dict[str, str] = {}
    waiting = list(ENTRIES.values())
    while waiting:
        module = waiting.pop()
        if _file(module) in files:
            continue
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        files[_file(module)], imported = _flattened(source)
        waiting += imported
    return files


def _file(module: str) -> str:
    entry = next((file for file, name in ENTRIES.items() if name == module), None)
    return f"{entry or module.replace('.', '_')}.py"


def _flattened(source: str) -> tuple[str, list[str]]:
    """The source, with our imports made relative and those of optional packages in a `try`; and our imports."""
    lines = source.splitlines()
    imported: list[str] = []
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in sorted(statements, key=lambda node: node.lineno, reverse=True):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mvlm":
            new = []
            for alias in node.names:
                module, line = _relative(node.module or "", alias)
                imported.append(module)
                new += line
        elif _is_optional(node):
            new = ["try:", f"    {ast.unparse(node)}", "except ImportError:", "    raise"]
        else:
            continue
        indent = " " * node.col_offset
        lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in new]
    return "\n".join(lines) + "\n", imported


def _relative(package: str, alias: ast.alias) -> tuple[str, list[str]]:
    """The module of ours that `from package import alias` reads, and lines that import it from the same folder."""
    inside = f"{package}.{alias.name}"
    if not (ROOT / f"{inside.replace('.', '/')}.py").exists():
        return package, [f"from .{Path(_file(package)).stem} import {ast.unparse(alias)}"]
    file = Path(_file(inside)).stem
    # The first line is for transformers, which only copies files that such lines import.
    return inside, [f"from .{file} import __name__ as _", f"from . import {file} as {alias.asname or alias.name}"]


def _is_optional(node: ast.Import | ast.ImportFrom) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    packages = {name.partition(".")[0] for name in names}
    return not packages <= EVERYWHERE | set(sys.stdlib_module_names)
