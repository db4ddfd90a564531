"""torch.export programs."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import castling_convert as cc
from castling_convert.errors import ExportError
from castling_convert.exporting import torch_program, torch_trust
from tests.models import KINDS, closed_student, images, tiny


def folded(kind: str = "deit", layers: str | None = None) -> Any:
    """One block of a kind has all that there is of it; two where one of them is kept."""
    torch.manual_seed(0)
    return cc.fold(closed_student(tiny(KINDS[kind], depth=2 if layers else 1), layers))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = folded()
    return model, cc.export(model, tmp_path_factory.mktemp("pt2") / "model.pt2", format="torch")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("kind", "layers"), [*((kind, None) for kind in KINDS), ("deit", "1")])
def test_every_kind_reloads_within_its_bounds(tmp_path, kind, layers, precision):
    model = folded(kind, layers)
    path = cc.export(model, tmp_path / "model.pt2", format="torch", precision=precision)
    x = images(5)
    with torch.no_grad():
        expected = model(x)
    error = (torch_program.open_artifact(path)(x) - expected).square().mean().sqrt() / expected.std()
    assert error <= {"fp32": 1e-6, "fp16": 0.01, "bf16": 0.05}[precision]


@pytest.mark.slow
def test_torch_alone_loads_it(made, tmp_path):
    """Neither this package nor timm is imported."""
    model, path = made
    torch.save(images(), tmp_path / "x.pt")
    with torch.no_grad():
        torch.save(model(images()), tmp_path / "y.pt")
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module();"
        "x, y = (torch.load(name, weights_only=True) for name in sys.argv[2:]);"
        "assert (program(x) - y).abs().max() < 1e-5; assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, path, tmp_path / "x.pt", tmp_path / "y.pt"], check=True, cwd=tmp_path)


def test_the_same_bytes_again(made, tmp_path):
    model, path = made
    again = cc.export(model, tmp_path / "other.pt2", format="torch")
    assert again.read_bytes() == path.read_bytes()


def test_a_fixed_batch_is_filled_up(tmp_path):
    model = folded()
    run = torch_program.open_artifact(cc.export(model, tmp_path / "model.pt2", format="torch", batch=4))
    assert run.batch == 4
    with torch.no_grad():
        torch.testing.assert_close(run(images(6)), model(images(6)), atol=1e-5, rtol=0)


def rewritten(path, change) -> bytes:
    """The archive with some members changed: `change(name, content)` gives the new content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(info, change(info.filename, old.read(info.filename)))
    return buffer.getvalue()


class Bomb:
    def __reduce__(self):
        import os

        return os.system, ("touch exploded",)


@pytest.mark.parametrize("where", ["weights", "inputs"])
def test_pickled_code_is_refused_and_not_run(made, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)

    def change(name: str, content: bytes) -> bytes:
        if where == "weights" and name.endswith("_weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
                b'"use_pickle":false', b'"use_pickle":true'
            )
        if where == "inputs" and "sample_inputs" in name:
            out = io.BytesIO()
            torch.save(Bomb(), out)
            return out.getvalue()
        return content

    bad = tmp_path / "bad.pt2"
    bad.write_bytes(rewritten(made[1], change))
    assert bad.read_bytes() != made[1].read_bytes()
    with pytest.raises(
        ExportError, match=r"^\S+ has pickled objects in it \(\S+\), which are not loaded; make it again with: "
    ):
        torch_program.open_artifact(bad)
    assert not (tmp_path / "exploded").exists()


EVIL = "__import__('os').system('touch exploded')"


def operator(graph: dict) -> None:
    """torch looks an operator up by getattr, from torch on, and so finds whatever torch has imported."""
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "command", "arg": {"as_string": "touch exploded"}, "kind": 1}]


def from_file(graph: dict) -> None:
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [{"name": "filename", "arg": {"as_string": "exploded"}, "kind": 1}]


def power(graph: dict) -> None:
    """Of whole numbers, which can take for ever; that of a float can't."""
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["target"] = "_operator.pow"
    node["inputs"] = [{"name": name, "arg": {"as_int": 9**9}, "kind": 1} for name in "ab"]


def name_of_input(graph: dict) -> None:
    graph["graph_module"]["signature"]["input_specs"][0]["parameter"]["arg"]["name"] = f"x={EVIL}"


def argument_name(graph: dict) -> None:
    signature = next(e for e in graph["graph_module"]["module_call_graph"] if e["fqn"] == "")["signature"]
    signature["forward_arg_names"] = [f"x={EVIL}"]


def container(graph: dict) -> None:
    signature = next(e for e in graph["graph_module"]["module_call_graph"] if e["fqn"] == "")["signature"]
    signature["in_spec"] = json.dumps(
        [1, {"type": "collections.defaultdict", "context": '{"default_factory_module": "evil"}', "children_spec": []}]
    )


def key(graph: dict) -> None:
    graph["range_constraints"] = {EVIL: {"min_val": 0, "max_val": None}}


def with_graph(path, change) -> bytes:
    def changed(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    return rewritten(path, changed)


@pytest.mark.parametrize("change", [operator, from_file, power, name_of_input, argument_name, container, key])
def test_a_graph_that_holds_code_is_refused(made, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pt2").write_bytes(with_graph(made[1], change))
    with pytest.raises(ExportError, match=r"^bad\.pt2 .* graph|takes or gives") as raised:
        torch_program.open_artifact(Path("bad.pt2"))
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt2"]


def test_guards_are_not_run(made, tmp_path, monkeypatch):
    """They are code, and what they say our runners know."""
    monkeypatch.chdir(tmp_path)

    def guard(graph: dict) -> None:
        graph["guards_code"] = [EVIL]

    (tmp_path / "bad.pt2").write_bytes(with_graph(made[1], guard))
    run = torch_program.open_artifact(Path("bad.pt2"))
    with torch.no_grad():
        torch.testing.assert_close(run(images(2)), made[0](images(2)), atol=1e-5, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt2"]
    assert not run.intact


@pytest.mark.parametrize(
    "size", [EVIL, "eval('1')", "Symbol(name='s0')().__class__", "9**9**9", "Pow(Integer(9), Integer(99))",
             "[1 for _ in (1,)]", "lambda: 1", "Symbol('a b')", "open", "1" * 3000, "(" * 500, "2.5j", "'s0'.x",
             "Float('0.5', precision=999999999)"]
)  # fmt: skip
def test_a_size_that_is_no_arithmetic_is_refused(made, tmp_path, monkeypatch, size):
    """torch evaluates sizes as Python."""
    monkeypatch.chdir(tmp_path)

    def change(name: str, content: bytes) -> bytes:
        expression = re.compile(rb'"expr_str": ?"[^"]*"')
        return (
            expression.sub(json.dumps({"expr_str": size})[1:-1].encode(), content) if "model.json" in name else content
        )

    (tmp_path / "bad.pt2").write_bytes(rewritten(made[1], change))
    assert (tmp_path / "bad.pt2").read_bytes() != made[1].read_bytes()
    with pytest.raises(ExportError, match="has a size in its graph that is no arithmetic"):
        torch_program.open_artifact(Path("bad.pt2"))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt2"]


def test_torch_itself_runs_such_a_size(made, tmp_path, monkeypatch):
    """Why all this is refused before torch sees it; should torch learn better, this test says so."""
    monkeypatch.chdir(tmp_path)
    evil = b'"expr_str": "' + EVIL.encode() + b'"'
    bad = rewritten(made[1], lambda _, content: re.sub(rb'"expr_str": ?"[^"]*"', evil, content))
    with contextlib.suppress(Exception):
        torch.export.load(io.BytesIO(bad))
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("member", ["archive/data/aotinductor/model/evil.so", "archive/../../evil", "archive/x.py"])
def test_a_member_that_is_never_written_is_refused(made, tmp_path, member):
    """torch opens the libraries of an archive."""
    (tmp_path / "bad.pt2").write_bytes(made[1].read_bytes())
    with zipfile.ZipFile(tmp_path / "bad.pt2", "a") as archive:
        archive.writestr(member, b"x")
    with pytest.raises(ExportError, match="in it, which castling export never writes"):
        torch_program.open_artifact(tmp_path / "bad.pt2")


def test_a_bomb_is_not_unpacked(made, tmp_path):
    (tmp_path / "bad.pt2").write_bytes(made[1].read_bytes())
    with zipfile.ZipFile(tmp_path / "bad.pt2", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/weights/weight_999", bytes(2**24))
    with pytest.raises(ExportError, match="compressed in it, which could be a bomb"):
        torch_program.open_artifact(tmp_path / "bad.pt2")


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_damaged_file(made, tmp_path, content):
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(made[1].read_bytes()[:2000] if content is None else content)
    with pytest.raises(ExportError, match=r"bad\.pt2") as raised:
        torch_program.open_artifact(bad)
    assert "\n" not in str(raised.value)


def test_weights_that_were_changed_are_found(made, tmp_path):
    _, path = made
    assert torch_program.open_artifact(path).intact
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "model.pt2", "w") as target:
        names = [name for name in source.namelist() if "/weights/weight_" in name]
        for name in source.namelist():
            content = bytearray(source.read(name))
            if name == names[0]:
                content[0] ^= 1
            target.writestr(name, bytes(content))
    assert not torch_program.open_artifact(tmp_path / "model.pt2").intact


@pytest.mark.parametrize(
    ("text", "trusted"),
    [("byhwc,hkc->byhwk", True), ("ij", True), ("ij->__import__('os')", False), ("a,b->c;d", False), ("i j->j", False)],
)
def test_letters_of_an_einsum_are_trusted_and_no_other_text(text: str, trusted: bool) -> None:
    assert (list(torch_trust._suspicious({"as_string": text})) == []) == trusted
