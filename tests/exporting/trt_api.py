"""The Python names of `tensorrt` by version."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

VERSIONS = ("v10.0.1", "v10.3.0", "v10.7.0", "v10.9.0", "v10.12.0", "v10.13.3", "v10.16", "v11.0", "v11.1")
SUPPORTED = VERSIONS[VERSIONS.index("v10.12.0") :]
TABLE = Path(__file__).parent / "data" / "trt_py_api.tsv"


@cache
def names() -> dict[str, dict[str, tuple[str, str]]]:
    """Class -> member -> (first, last) version; the member `""` is the class itself."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            owner, member, _kind, _file, first, last = line.split("\t")
            found.setdefault(owner, {})[member] = (first, last)
    return found


def there(owner: str, member: str, version: str) -> bool:
    if member not in names().get(owner, {}):
        return False
    first, last = (VERSIONS.index(v) for v in names()[owner][member])
    return first <= VERSIONS.index(version) <= last


def attributes(source: str) -> set[tuple[str, ...]]:
    """Every dotted name that starts with `trt` or `api`, such as ("Logger", "WARNING")."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in ("trt", "tensorrt", "api"):
            found.add(tuple(reversed(parts)))
    return found
