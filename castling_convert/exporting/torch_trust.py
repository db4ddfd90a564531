"""What a .pt2 file may hold, so that nothing in one from anybody is run but tensor operators.

`torch.export.load` trusts its file: it unpickles what is said to be pickled, evaluates sizes and guards as Python,
looks up operators by any dotted name below `torch`, builds source text from names, and opens compiled libraries. Files
of `castling export` hold tensors and a graph of aten operators; what else there is in one is refused before torch sees
it. The guards, by which a program for any size checks its input's, are left out: our runners know the sizes.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import ExportError, first_line

LARGEST_GRAPH = 2**28
"""Bytes of the graph's JSON; that of a ViT-L has some ten million."""

_MEMBERS = re.compile(
    r"[\w.-]+/("
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)|"
    r"data/sample_inputs/model\.pt|models/model\.json|extra/castling\.json|"
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id)"
)
_EINSUM = re.compile(r"[a-zA-Z]{1,16}(,[a-zA-Z]{1,16}){0,3}(->[a-zA-Z]{0,16})?")
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|_operator\.(add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|and_|getitem)|"
    r"torch\.sym_(int|float|max|min|not|sum)|math\.(ceil|floor|trunc)"
)
"""`aten.from_file` maps any file of the machine."""
_GRAPH = "models/model.json"
_FREE = {"stack_trace", "torch_fn", "nn_module_stack", "source_fn_stack", "torch_version", "from_node", "custom"}
"""What is kept and shown, and never looked up or run."""
_CALLED = {
    "Symbol", "Integer", "Rational", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv",
    "ModularIndexing", "IntTrueDiv", "TruncToInt", "FloorToInt", "CeilToInt", "ToFloat", "Identity", "Equality",
    "Unequality", "Eq", "Ne", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Lt", "Le", "Gt", "Ge",
    "And", "Or", "Not", "floor", "ceiling", "FloatPow",
}  # fmt: skip
"""What sizes are computed by. No power is among them: that of two whole numbers could take for ever."""
_FLOAT = re.compile(r"\bFloat\('-?\d{1,20}\.?\d{0,20}', precision=53\)")
"""How a float is written in a size; any other precision could take for ever."""
_EXPRESSION = (
    ast.Expression, ast.Load, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv,
    ast.Mod, ast.USub, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.keyword, ast.Name, ast.Call,
    ast.Constant,
)  # fmt: skip


def trusted(path: Path) -> io.BytesIO:
    """A .pt2 file's members as they were checked but for the guards, in an archive made anew: torch reads archives by
    other rules than Python, and could find other members in the same file.

    Raises:
        ExportError: there is anything in it but tensors and a graph of operators on them.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive:
            why, graph = _distrust(archive)
            if why is None:
                with zipfile.ZipFile(copy, "w") as made:
                    for member in archive.infolist():
                        is_graph = member.filename.endswith(_GRAPH)
                        content = json.dumps(graph) if is_graph else archive.read(member)
                        made.writestr(zipfile.ZipInfo(member.filename), content)
    except FileNotFoundError:
        raise ExportError(f"artifact {path} not found; make it with: castling export --format torch") from None
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile archive leads to
        first = first_line(error)
        raise ExportError(f"{path} is damaged, or no .pt2 file of castling export: {first}") from None
    if why is not None:
        raise ExportError(f"{path} {why}; make it again with: castling export --format torch")
    copy.seek(0)
    return copy


def _distrust(archive: zipfile.ZipFile) -> tuple[str | None, Any]:
    """What is not trusted, as the end of a sentence about the file; and its graph, without guards."""
    if len({member.filename for member in archive.infolist()}) != len(archive.infolist()):
        return "has two members of one name in it", None
    for member in archive.infolist():
        if not _MEMBERS.fullmatch(member.filename):
            return f"has {member.filename} in it, which castling export never writes", None
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            return f"has {member.filename} compressed in it, which could be a bomb", None
    graph = None
    for member in archive.infolist():
        name = member.filename
        if name.endswith("_config.json"):
            entries: dict[str, Any] = json.loads(archive.read(name)).get("config", {})
            bad = next((key for key, entry in entries.items() if entry.get("use_pickle")), None)
            if bad is not None:
                return f"has pickled objects in it ({bad}), which are not loaded", None
        elif name.endswith("sample_inputs/model.pt") and member.file_size:
            try:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            except pickle.UnpicklingError:  # it says how to run the code all the same
                return f"has pickled objects in it ({name}), which are not loaded", None
        elif name.endswith(_GRAPH):
            if member.file_size > LARGEST_GRAPH:
                return "has too large a graph in it", None
            graph = json.loads(archive.read(name)) | {"guards_code": []}
    return "has no graph in it" if graph is None else next(_suspicious(graph), None), graph


def _suspicious(value: Any, key: str = "") -> Iterator[str]:
    """What torch would run of a graph, or can be made to, in nested JSON."""
    if isinstance(value, dict):
        for name, inner in value.items():
            computed = key == "range_constraints" and _is_arithmetic(name)
            if not re.fullmatch(r"[\w.]*", name) and not computed and key not in _FREE:
                yield f"has a strange name in its graph ({name[:40]!r})"
            if inner == "_operator.pow" and name == "target" and _is_of_floats(value.get("inputs")):
                continue
            yield from _suspicious(inner, name)
    elif isinstance(value, list):
        if key == "guards_code" and value:
            yield "has guards in its graph, which are code"
        for inner in value:
            yield from _suspicious(inner, key)
    elif isinstance(value, str) and key not in _FREE:
        if key == "target" and value.count(".") and not _OPERATORS.fullmatch(value):
            yield f"calls {value[:60]!r} in its graph, which is no operator on tensors"
        elif key == "expr_str":
            if not _is_arithmetic(value):
                yield f"has a size in its graph that is no arithmetic ({value[:40]!r})"
        elif key in ("in_spec", "out_spec"):
            if any(kind not in (None, "builtins.tuple", "builtins.list", "builtins.dict") for kind in _types(value)):
                yield "takes or gives other objects than tensors"
        elif not _is_plain(value, key):
            yield f"has a strange {key or 'text'} in its graph ({value[:40]!r})"


def _is_plain(text: str, key: str) -> bool:
    """Whether a text is a name or a number, minus infinity or the letters of an einsum."""
    infinite, letters = key == "as_float" and text == "-Infinity", key == "as_string" and _EINSUM.fullmatch(text)
    return bool(re.fullmatch(r"[\w.]*", text) or infinite or letters)


def _is_of_floats(inputs: Any) -> bool:
    """Whether one of an operator's operands is a float, and so its result."""
    return any(list(operand["arg"]) == ["as_float"] for operand in inputs)


def _is_arithmetic(text: str) -> bool:
    """Whether torch, which evaluates this text as Python, computes a number by it and does nothing else."""
    if len(text) > 2000:
        return False
    try:
        nodes = list(ast.walk(ast.parse(_FLOAT.sub("1.0", text), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in nodes:
        if not isinstance(node, _EXPRESSION):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _CALLED):
            return False
        if isinstance(node, ast.Name) and node.id not in _CALLED and not re.fullmatch(r"[suz]\d+|true|false", node.id):
            return False
        if isinstance(node, ast.Constant):
            value = node.value
            plain = isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63)
            if not plain and not (isinstance(value, str) and re.fullmatch(r"[suz]\d+", value)):
                return False
    return True


def _types(spec: str) -> Iterator[str | None]:
    """Of the containers in torch's description of what a program takes or gives."""
    stack: list[Any] = json.loads(spec)[1:]
    while stack:
        node = stack.pop()
        yield node["type"]
        if node["context"] not in (None, "null", "[]"):
            yield "something with a context"
        stack += node["children_spec"]
