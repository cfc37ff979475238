"""The table of models whose ends are on the end stages alone, against the sources of the installed vLLM."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from zmqpp.checkpoint.names import Role
from zmqpp.checkpoint.share import PLACED

found = importlib.util.find_spec("vllm")
if found is None or not found.submodule_search_locations:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

MODELS = Path(found.submodule_search_locations[0]) / "model_executor" / "models"
pytestmark = pytest.mark.vllm
BUILT = {
    Role.EMBEDDING: (r"VocabParallelEmbedding\(", "is_first_rank"),
    Role.FINAL_NORM: (r"Norm\w*\(", "is_last_rank"),
    Role.HEAD: (r"ParallelLMHead\(", "is_last_rank"),
}
ATTRIBUTES = {
    Role.EMBEDDING: ("embed_tokens", "wte", "word_embeddings"),
    Role.FINAL_NORM: ("norm", "ln_f", "embedding_norm"),
    Role.HEAD: ("lm_head",),
}


def registered(architecture: str) -> str:
    """Module of an architecture, as vLLM's registry has it."""
    match = re.search(rf'"{architecture}": \("(\w+)", "\w+"\)', (MODELS / "registry.py").read_text())
    assert match, f"vLLM does not know {architecture} any more"
    return match[1]


def sources(module: str, wanted: str = "") -> list[ast.ClassDef]:
    """Classes of a model's file, and of the files its base classes come from: those, and what they are made of.

    Args:
        wanted: pattern of the classes' names; empty = all.
    """
    tree = ast.parse((MODELS / f"{module}.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and re.search(wanted, node.name)]
    bases = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
    for node in tree.body:
        imported = {alias.name for alias in node.names} & bases if isinstance(node, ast.ImportFrom) else set()
        file = (node.module or "").rpartition(".")[2] if isinstance(node, ast.ImportFrom) else ""
        if imported and (MODELS / f"{file}.py").exists():
            # A ForCausalLM takes the Model of its own file; a Model alone has no head there.
            inner = {"Model$"} if any("ForCausalLM" in name for name in imported) else set()
            classes += sources(file, "|".join([f"^{name}$" for name in imported] + sorted(inner)))
    return classes


def conditions(classes: list[ast.ClassDef], role: Role) -> list[str]:
    """For each place where a module of this role is built: the conditions around it."""
    call, _ = BUILT[role]
    seen: list[str] = []

    def walk(body: list[ast.stmt], around: str) -> None:
        for node in body:
            if isinstance(node, ast.If):
                walk(node.body, around + ast.unparse(node.test))
                walk(node.orelse, around)
            elif isinstance(node, ast.Assign) and re.search(call, ast.unparse(node.value)):
                target = node.targets[0]
                if isinstance(target, ast.Attribute) and target.attr in ATTRIBUTES[role]:
                    seen.append(around)

    for node in classes:
        inits = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        # Only models and their heads have such ends; layers have norms of other names, towers other classes.
        if inits and re.search(r"(Model|ForCausalLM|Base|DecoderModel)$", node.name):
            walk(inits[0].body, "")
    return seen


@pytest.mark.parametrize("architecture", sorted(PLACED))
def test_vllm_builds_the_ends_only_where_the_table_says(architecture: str) -> None:
    classes = sources(registered(architecture))
    for role, (_, rank) in BUILT.items():
        built = conditions(classes, role)
        if role in PLACED[architecture]:
            assert built, f"no {role.value} found in {architecture}"
            assert all(rank in around for around in built), (
                f"{architecture} builds its {role.value} everywhere"
            )
        elif built:
            assert not all(rank in around for around in built), f"{architecture} now places its {role.value}"
