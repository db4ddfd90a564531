"""The documents that are made from the registries, and what others say of them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_reference_is_current() -> None:
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == build["page"](), "run: python docs/build.py"


def test_the_readmes_table_of_models_is_current() -> None:
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == build["readme"](text), "run: python docs/build.py"
    assert build["models"]().count("\n") < 24  # a screen


@pytest.mark.parametrize(
    "file", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_files_that_are_named_are_there(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [name for name in linked if not ((ROOT / file).parent / name).exists()]
    named = re.findall(r"`((?:benchmarks|docs|examples|tests|castling_convert|recipes)/[\w./-]+)`", text)
    assert not missing + [name for name in named if not (ROOT / name).exists()]
