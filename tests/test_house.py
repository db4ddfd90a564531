"""What only one room of the house knows, read from the syntax of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import castling_convert as cc

PACKAGE = Path(cc.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

STRUCTURE = {"blocks", "patch_embed", "embed_dim", "num_prefix_tokens"}
"""How a model is built: for families alone."""
MEANING = {"forward_head", "argmax", "num_classes"}
"""What a model's outputs mean: for tasks alone."""

EXCEPTIONS = {
    "demo/testbeds.py": "the small teachers are made with timm's own arguments",
    "loading.py": "--num-classes, timm's argument",
    "pipeline/conversion.py": "--num-classes, handed to loading",
    "cli/analyze.py": "--num-classes, handed to loading",
    "cli/inspect.py": "--num-classes, handed to loading",
    "dense/backbone.py": "an argument of timm's",
    "dense/detector.py": "an argument of timm's",
    "dense/segmenter.py": "an argument of timm's",
    "timm_entry.py": "an argument of timm's",
    "families/hub_model.py": "an argument of timm's",
    "bundle/config.py": "a key of timm's config.json",
    "evaluation/teacher.py": "arguments of timm that a teacher is not made with again",
}
"""Where the words are those of timm's constructors or files, and no model is looked into."""


def words(tree: ast.AST) -> Iterator[str]:
    """Names, attributes, arguments, and the parts of dotted strings that are no sentences."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            yield from node.value.split(".")


def said(module: str) -> set[str]:
    return set(words(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))))


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("families/")])
def test_only_families_know_how_models_are_built(module: str) -> None:
    allowed = STRUCTURE if module in EXCEPTIONS else set()
    assert not (said(module) & STRUCTURE) - allowed


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("tasks/")])
def test_only_tasks_know_what_outputs_mean(module: str) -> None:
    allowed = {"num_classes"} if module in EXCEPTIONS else set()
    allowed |= {"forward_head"} if module == "families/base.py" else set()  # how a model is run in two parts
    assert not (said(module) & MEANING) - allowed


def test_every_exception_is_one() -> None:
    assert all(said(module) & (STRUCTURE | MEANING) for module in EXCEPTIONS)


def test_the_words_are_found() -> None:
    assert {"blocks", "patch_embed", "num_prefix_tokens"} <= said("families/vit.py")
    assert {"argmax", "num_classes"} <= said("tasks/classify.py") | said("tasks/base.py")
    assert "forward_head" in said("families/base.py")
