"""The table of models that vLLM does not split over stages, against the sources of the installed vLLM."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

import pytest

from zmqpp.checkpoint.pipelining import HEAD_ON_EVERY_STAGE, NOT_PIPELINED
from zmqpp.vllm import compat

found = importlib.util.find_spec("vllm")
if found is None or not found.submodule_search_locations:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

MODELS = Path(found.submodule_search_locations[0]) / "model_executor" / "models"
PACKAGE = "vllm.model_executor.models"
pytestmark = pytest.mark.vllm
GROUPS = (
    *("_TEXT_GENERATION_MODELS", "_EMBEDDING_MODELS", "_LATE_INTERACTION_MODELS", "_MULTIMODAL_MODELS"),
    *("_TOKEN_CLASSIFICATION_MODELS", "_SEQUENCE_CLASSIFICATION_MODELS", "_REWARD_MODELS"),
)
ADAPTED = {"LlamaBidirectionalModel", "LlamaBidirectionalForSequenceClassification"}
"""Classes that a function makes of another one, which the sources do not show."""


def registered() -> dict[str, tuple[str, str]]:
    """Architecture -> (module, class), of those in the folder of models."""
    entries: dict[str, tuple[str, str]] = {}
    for node in ast.parse((MODELS / "registry.py").read_text()).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        if not isinstance(node.targets[0], ast.Name) or node.targets[0].id not in GROUPS:
            continue
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple):
                module, name = (ast.literal_eval(part) for part in value.elts[:2])
                entries[str(key.value)] = (module, name)
    return {name: place for name, place in entries.items() if not place[0].startswith("vllm.")}


@functools.cache
def parsed(module: str) -> ast.Module | None:
    path = MODELS / f"{module.replace('.', '/')}.py"
    path = path if path.exists() else MODELS / module.replace(".", "/") / "__init__.py"
    return ast.parse(path.read_text()) if path.exists() else None


@functools.cache
def supports_pp(module: str, name: str) -> bool:
    """Whether SupportsPP is among a class's bases, wherever they are defined."""
    if name == "SupportsPP":
        return True
    tree = parsed(module)
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
            return any(isinstance(base, ast.Name) and supports_pp(module, base.id) for base in bases)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return supports_pp(_imported(module, node), alias.name)
    return False


def goes_on_with_what_any_stage_gives(module: str, name: str) -> bool:
    """Whether a class of `module`, or its base there, uses what its layers give without a look at what that is."""
    tree = parsed(module)
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
            if "forward" in methods:
                return _uses_unseen(methods["forward"])
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            return any(goes_on_with_what_any_stage_gives(module, base) for base in bases)
    return False


def _uses_unseen(forward: ast.FunctionDef) -> bool:
    """`given = self.model(…)`, and then `given.to(…)`."""
    given = {
        ast.unparse(node.targets[0])
        for node in ast.walk(forward)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("self.model(")
    }
    looked_at = "isinstance(" in ast.unparse(forward)
    used = {ast.unparse(node.value) for node in ast.walk(forward) if isinstance(node, ast.Attribute)}
    return bool(given & used) and not looked_at


def _imported(module: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return (node.module or "").removeprefix(PACKAGE).lstrip(".")
    is_package = (MODELS / module.replace(".", "/")).is_dir()
    parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def test_the_table_holds_the_models_that_vllm_does_not_split_and_no_others() -> None:
    models = registered()
    assert len(models) > 200, "the registry looks otherwise now"
    unsplit = {name for name, place in models.items() if not supports_pp(*place)} - ADAPTED
    assert NOT_PIPELINED & models.keys() - unsplit == set(), "vLLM splits these now"
    assert unsplit - NOT_PIPELINED == set(), "vLLM does not split these"


def test_models_whose_head_vllm_puts_behind_every_stage_are_known() -> None:
    models = registered()
    split = {name: place for name, place in models.items() if supports_pp(*place)}
    found = {name for name, place in split.items() if goes_on_with_what_any_stage_gives(*place)}
    assert found == models.keys() & HEAD_ON_EVERY_STAGE != set()


@pytest.mark.skipif(
    compat.minor(compat.vllm_version()) != compat.SUPPORTED_VLLM[-1],
    reason=f"models came after vLLM {compat.vllm_version()}; the table is of {compat.SUPPORTED_VLLM[-1]} too",
)
def test_the_newest_vllm_knows_every_model_of_the_table() -> None:
    assert NOT_PIPELINED - registered().keys() == set()
