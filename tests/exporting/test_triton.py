"""Triton model repositories, held against the grammar of protobuf's text format and the fields of ModelConfig."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from castling_convert.artifact.runner import Runner
from castling_convert.artifact.signature import Signature
from castling_convert.errors import ExportError, OutputError
from castling_convert.exporting.triton import config, write_repository

FIELDS = {
    "": {"name": str, "backend": str, "max_batch_size": int, "input": list, "output": list, "dynamic_batching": dict},
    "input": {"name": str, "data_type": "enum", "dims": list},
    "output": {"name": str, "data_type": "enum", "dims": list},
}
"""Fields of triton-inference-server/common, protobuf/model_config.proto, that are used, and their kinds."""
ENUM = {"TYPE_FP32", "TYPE_FP16", "TYPE_BF16", "TYPE_UINT8"}


def parse(text: str) -> dict:
    """Protobuf's text format, as far as it is needed: fields, strings, numbers, lists, messages."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[A-Za-z_][A-Za-z_0-9]*|-?\d+|[{}\[\]:,]', text)
    assert "".join(tokens) == re.sub(r"\s+", "", text)
    place = 0

    def value():
        nonlocal place
        token = tokens[place]
        place += 1
        if token == "{":
            return message("}")
        if token == "[":
            found = []
            while tokens[place] != "]":
                found.append(value())
                if tokens[place] == ",":
                    place += 1
            place += 1
            return found
        if token.startswith('"'):
            return token[1:-1]
        return int(token) if re.fullmatch(r"-?\d+", token) else token

    def message(end: str | None):
        nonlocal place
        fields: dict = {}
        while place < len(tokens) and tokens[place] != end:
            name = tokens[place]
            place += 1
            assert re.fullmatch(r"[a-z_]+", name), name
            if tokens[place] == ":":
                place += 1
            else:
                assert tokens[place] in "{[", f"{name} needs a colon"
            assert name not in fields
            fields[name] = value()
        place += 1
        return fields

    return message(None)


class Known(Runner):
    def run(self, values):
        raise AssertionError("not run here")


def parsed(signature: Signature, batch: int | None = None, largest: int | None = None) -> dict:
    found = parse(config(Known(signature, {}, batch), (10,), "deit", "onnxruntime", largest))
    for name, value in found.items():
        assert isinstance(value, FIELDS[""][name])
    for tensor in (*found["input"], *found["output"]):
        assert set(tensor) == set(FIELDS["input"])
        assert tensor["data_type"] in ENUM
    return found


def test_a_dynamic_batch_is_tritons_own_dimension():
    found = parsed(Signature((3, 224, 192)), largest=8)
    assert found == {
        "name": "deit", "backend": "onnxruntime", "max_batch_size": 8, "dynamic_batching": {},
        "input": [{"name": "images", "data_type": "TYPE_FP32", "dims": [3, 224, 192]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}],
    }  # fmt: skip


def test_a_fixed_batch_is_part_of_the_shape():
    found = parsed(Signature((3, 224, 192), "pixels", "probabilities", "float16"), batch=4)
    assert found["max_batch_size"] == 0
    assert "dynamic_batching" not in found
    assert found["input"] == [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": [4, 224, 192, 3]}]
    assert found["output"] == [{"name": "probabilities", "data_type": "TYPE_FP16", "dims": [4, 10]}]


def test_the_layout(tmp_path: Path):
    for suffix in (".xml", ".bin"):
        (tmp_path / f"model.int8{suffix}").write_text(suffix)
    made = write_repository(
        tmp_path / "model.int8.xml", Known(Signature((3, 8, 8)), {}, None), (10,), tmp_path / "models", "deit", None
    )
    files = {path.relative_to(made).as_posix(): path.read_text() for path in made.rglob("*") if path.is_file()}
    assert files.pop("config.pbtxt").startswith('name: "deit"\nbackend: "openvino"\n')
    assert files == {"1/model.xml": ".xml", "1/model.bin": ".bin"}


def test_only_a_model_of_tritons_is_replaced(tmp_path: Path):
    """And of that version 1 alone."""
    (tmp_path / "model.onnx").write_text("new")
    made, run = tmp_path / "models" / "deit", Known(Signature((3, 8, 8)), {}, None)
    for folder in ("1", "2"):
        (made / folder).mkdir(parents=True)
        (made / folder / "model.onnx").write_text("old")
    with pytest.raises(OutputError, match=r"models/deit is there and is no model of Triton's; give --triton another"):
        write_repository(tmp_path / "model.onnx", run, (10,), tmp_path / "models", "deit", None)
    assert (made / "1/model.onnx").read_text() == "old"
    with pytest.raises(OutputError, match=r"model\.onnx is a file; give --triton a folder"):
        write_repository(tmp_path / "model.onnx", run, (10,), tmp_path / "model.onnx", "deit", None)
    (made / "config.pbtxt").touch()
    write_repository(tmp_path / "model.onnx", run, (10,), tmp_path / "models", "deit", None)
    assert [(made / folder / "model.onnx").read_text() for folder in ("1", "2")] == ["new", "old"]
    assert (made / "config.pbtxt").read_text().startswith('name: "deit"')


def test_a_kind_that_triton_does_not_serve(tmp_path: Path):
    with pytest.raises(ExportError, match=r"no backend for \.pt2"):
        write_repository(tmp_path / "model.pt2", Known(Signature((3, 8, 8)), {}, None), (10,), tmp_path, "deit", None)


def test_boxes_have_more_axes_than_one():
    found = parse(
        config(Known(Signature((3, 8, 8), output="boxes"), {}, None), (-1, 7), "detector", "onnxruntime", None)
    )
    assert found["output"][0]["dims"] == [-1, 7]
