"""Names in the sources of a vLLM that is not installed, and not imported."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

Scope = ast.Module | ast.ClassDef


def is_in_source(root: Path, symbol: str) -> bool:
    """Whether `module:Name.attribute` is bound somewhere in the module, the class or its bases.

    Args:
        root: the folder that holds the package `vllm`.
    """
    module, _, path = symbol.partition(":")
    name, _, attribute = path.partition(".")
    found = _find(root, module, name)
    if found is None:
        return False
    where, node = found
    return not attribute or (isinstance(node, ast.ClassDef) and _has(root, where, node, attribute))


def _has(root: Path, module: str, node: ast.ClassDef, attribute: str) -> bool:
    if attribute in _bound(node):
        return True
    for base in node.bases:
        if isinstance(base, ast.Subscript):
            base = base.value
        if isinstance(base, ast.Name) and (found := _find(root, module, base.id)) is not None:
            where, parent = found
            if (
                isinstance(parent, ast.ClassDef)
                and parent is not node
                and _has(root, where, parent, attribute)
            ):
                return True
    return False


def _find(root: Path, module: str, name: str) -> tuple[str, ast.AST] | None:
    """Module and node of a name, where imports lead; the import itself where it leads out of the package."""
    tree = _parsed(root, module)
    node = _bound(tree).get(name) if tree is not None else None
    if not isinstance(node, ast.ImportFrom):
        return None if node is None else (module, node)
    source = _absolute(root, module, node)
    imported = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    if not source.startswith("vllm"):
        return module, node
    if _parsed(root, f"{source}.{imported}") is not None:
        return module, node
    return _find(root, source, imported)


def _absolute(root: Path, module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    is_package = (root.joinpath(*parts) / "__init__.py").exists()
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


@cache
def _parsed(root: Path, module: str) -> ast.Module | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return ast.parse(path.read_text())
    return None


def _bound(scope: Scope) -> dict[str, ast.AST]:
    """Names bound in a scope, inside `if` and `try` too, and fields that methods set."""
    found: dict[str, ast.AST] = {}
    waiting: list[ast.AST] = list(scope.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.If | ast.Try | ast.With):
            waiting += [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
            waiting += [part for handler in getattr(node, "handlers", []) for part in handler.body]
    return found
