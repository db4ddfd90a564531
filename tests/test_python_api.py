"""Every public verb, given what it can't use, says in one line what it wants; what is a little different it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import castling_convert as cc
from castling_convert.errors import (
    BundleError,
    DataError,
    ExportError,
    FoldError,
    ModelError,
    OutputError,
    RecipeError,
    WeightsError,
)

from .models import closed_student, images, recipe, tiny

SHORT = recipe().override("distill.steps=2", "distill.batch_size=2", "distill.align.echo=1")
FOLDED = cc.fold(closed_student(tiny()))
LINEAR = nn.Linear(3, 3)
BATCH = "a batch is a float tensor or array [B, C, H, W], or a tuple that starts with one"


def of(array: type, kind: str, *shape: int):
    made = np.zeros(shape, kind)
    return made if array is np.ndarray else torch.from_numpy(made)


def distilled(data, student=None, teacher=None, **options):
    teacher = teacher if teacher is not None else tiny()
    return cc.distill(student or cc.castle(teacher, SHORT), teacher, data, SHORT, device="cpu", **options)


def converted(model="vit_t", output="out", **options):
    return cc.convert(model, output, **{"data": "digits", "recipe": SHORT, "pretrained": False, **options})


REFUSED = [
    (lambda: cc.castle("deit_s"), ModelError, "castle() takes as model a timm model, such as "
     "timm.create_model('deit_small_patch16_224'), not the text 'deit_s'"),
    (lambda: cc.castle_(None), ModelError, "castle_() takes as model a timm model, such as "
     "timm.create_model('deit_small_patch16_224'), not None"),
    (lambda: cc.castle(LINEAR), ModelError, "Linear can't be castled: its attention is of a kind that is not "
     "known here; list the models that can be with: castling models"),
    (lambda: cc.castle(tiny(), {"layers": "all"}), RecipeError,
     "castle() takes as recipe a Recipe, the name of a shipped one or the path of a file, not a dict"),
    (lambda: cc.castle(tiny(), SHORT, [0, 1]), RecipeError,
     "castle() takes as layers a text, such as 'all', '0-7,9' or 'blocks.*.attn', not a list"),
    (lambda: cc.distill("x", tiny(), "digits"), ModelError,
     "distill() takes as student a student, made by castle(), not the text 'x'"),
    (lambda: cc.distill(tiny(), None, "digits"), ModelError, "distill() takes as teacher a timm model, such as "
     "timm.create_model('deit_small_patch16_224'), not None"),
    (lambda: cc.distill(tiny(), tiny(), "digits", SHORT), ModelError,
     "the student has no castled layers in training form; make it with castle()"),
    (lambda: distilled([images()], cc.castle(tiny(), SHORT), tiny(depth=1)), ModelError, "the teacher has no layer "
     "blocks.1.attn like the student's; give the softmax model that the student was castled from"),
    (lambda: distilled([images()], cc.castle(tiny(), SHORT), tiny(embed_dim=96)), ModelError, "the teacher has no "
     "layer blocks.0.attn like the student's; give the softmax model that the student was castled from"),
    (lambda: distilled([images()], cc.castle(tiny(), SHORT), tiny(num_classes=5)), ModelError,
     "the teacher has 5 classes and the student 10; give one with as many"),
    (lambda: distilled([images()], cc.castle(tiny(), SHORT), FOLDED), ModelError,
     "the teacher is castled itself; give the softmax model that the student was castled from"),
    (lambda: distilled(None), DataError,
     f"distill() takes as data a spec, or batches one after the other, not None; {BATCH}"),
    (lambda: distilled({"a": 1}), DataError,
     f"distill() takes as data a spec, or batches one after the other, not a dict; {BATCH}"),
    (lambda: distilled(images()), DataError, "distill() takes as data a spec, or batches one after the other, not a "
     f"Tensor of torch.float32 [2, 3, 32, 32]; {BATCH}"),
    (lambda: distilled(["china", "flower"]), DataError, f"{BATCH}, not the text 'china'"),
    (lambda: distilled([{"image": images()}]), DataError, f"{BATCH}, not a dict"),
    (lambda: distilled([()]), DataError, f"{BATCH}, not a tuple"),
    (lambda: distilled([of(np.ndarray, "u1", 2, 3, 32, 32)]), DataError,
     f"{BATCH}, not a ndarray of uint8 [2, 3, 32, 32]"),
    (lambda: distilled([of(torch.Tensor, "f4", 3, 32, 32)]), DataError,
     f"{BATCH}, not a Tensor of torch.float32 [3, 32, 32]"),
    (lambda: distilled([of(torch.Tensor, "f4", 0, 3, 32, 32)]), DataError,
     f"{BATCH}, not a Tensor of torch.float32 [0, 3, 32, 32]"),
    (lambda: distilled([of(np.ndarray, "f4", 2, 3, 40, 40)]), DataError,
     "the model takes images [B, 3, 32, 32], not [2, 3, 40, 40]"),
    (lambda: distilled([of(np.ndarray, "f4", 2, 1, 32, 32)]), DataError,
     "the model takes images [B, 3, 32, 32], not [2, 1, 32, 32]"),
    (lambda: distilled([images(), images(height=40)]), DataError,
     "the model takes images [B, 3, 32, 32], not [2, 3, 40, 32]"),
    (lambda: distilled([images()], workdir=3), OutputError, "distill() takes as workdir the path of a folder, not 3"),
    (lambda: cc.distill(cc.castle(tiny(), SHORT), tiny(), [images()], SHORT, device=0), ModelError,
     "distill() takes as device a word, such as 'cpu' or 'cuda:1', not 0"),
    (lambda: cc.fold("x"), ModelError,
     "fold() takes as student a student, made by castle() and trained by distill(), not the text 'x'"),
    (lambda: cc.fold_(None), ModelError,
     "fold_() takes as student a student, made by castle() and trained by distill(), not None"),
    (lambda: cc.fold(tiny()), FoldError, "this model is not castled; call castle() and distill() first"),
    (lambda: cc.save(None, "out"), ModelError, "save() takes as model a model from fold(), not None"),
    (lambda: cc.save(FOLDED, 3), BundleError, "save() takes as path a folder, not 3"),
    (lambda: cc.save(FOLDED, "out", recipe="castling"), RecipeError,
     "save() takes as recipe a Recipe, not the text 'castling'"),
    (lambda: cc.save(FOLDED, "out", summary={"a": object()}), BundleError,
     "save() takes as summary a dict of what JSON can hold, not a dict"),
    (lambda: cc.save(FOLDED, "out", metrics=3), BundleError, "save() takes as metrics the path of a file, not 3"),
    (lambda: cc.save(FOLDED, "out", trained="x"), ModelError,
     "save() takes as trained a model from distill(), not the text 'x'"),
    (lambda: cc.load(None), BundleError, "load() takes as path the folder of a bundle, not None"),
    (lambda: cc.load(FOLDED), BundleError, "load() takes as path the folder of a bundle, not a VisionTransformer"),
    (lambda: cc.export(None), ModelError,
     "export() takes as model a model from fold() or load(), or the folder of a bundle, not None"),
    (lambda: cc.export(FOLDED, 3), ExportError, "export() takes as output the path of a file, not 3"),
    (lambda: cc.export(FOLDED, "a.onnx", format=["onnx"]), ExportError, "export() takes as format a word, not a list"),
    (lambda: cc.export(FOLDED, "a.onnx", precision=None), ExportError, "export() takes as precision a word, not None"),
    (lambda: cc.export(FOLDED, "a.onnx", opset="x"), ExportError,
     "opset should be a valid integer, not 'x'"),
    (lambda: cc.export(FOLDED, "a.onnx", opset=20.5), ExportError,
     "opset should be a valid integer, not 20.5"),
    (lambda: cc.export(FOLDED, "a.onnx", atol="x"), ExportError,
     "atol should be a valid number, not 'x'"),
    (lambda: cc.export(FOLDED, "a.onnx", simplify="no"), ExportError,
     "simplify should be a valid boolean, not 'no'"),
    (lambda: cc.Session(None), ExportError, "Session() takes as artifact the file of an exported artifact, not None"),
    (lambda: cc.Session("a.onnx", device=0), ExportError,
     "Session() takes as device a word, such as 'cpu' or 'cuda', not 0"),
    (lambda: cc.Session("a.onnx", batch_size="2"), ExportError,
     "Session() takes as batch_size a whole number, not the text '2'"),
    (lambda: cc.Recipe.load(None), RecipeError,
     "Recipe.load() takes as source the name of a shipped recipe or the path of a file, not None"),
    (lambda: cc.Recipe.load(SHORT), RecipeError,
     "Recipe.load() takes as source the name of a shipped recipe or the path of a file, not a Recipe"),
    (lambda: cc.Recipe.load("castling", "distill.steps=3"), RecipeError,
     "Recipe.load() takes as overrides a list of texts such as 'distill.steps=100', not the text 'distill.steps=3'"),
    (lambda: cc.Recipe.load("castling", {"distill.steps": 3}), RecipeError,
     "Recipe.load() takes as overrides a list of texts such as 'distill.steps=100', not a dict"),
    (lambda: converted(None), ModelError,
     "convert() takes as model a name such as 'deit_small_patch16_224', or a timm model, not None"),
    (lambda: converted(LINEAR), ModelError, "Linear can't be castled: its attention is of a kind that is not "
     "known here; list the models that can be with: castling models"),
    (lambda: converted(""), ModelError,
     "no model named '' in timm or among the aliases; list what can be castled with: castling models"),
    (lambda: converted(output=None), OutputError, "convert() takes as output a folder, not None"),
    (lambda: converted(data=[images()]), DataError, "convert() takes as data a spec, such as a folder of images "
     "(batches of your own are for castle() and distill()), not a list"),
    (lambda: converted(recipe={"layers": "all"}), RecipeError,
     "convert() takes as recipe a Recipe, the name of a shipped one or the path of a file, not a dict"),
    (lambda: converted(layers=[0]), RecipeError,
     "convert() takes as layers a text, such as 'all', '0-7,9' or 'blocks.*.attn', not a list"),
    (lambda: converted(max_drop="1"), RecipeError, "convert() takes as max_drop a number, not the text '1'"),
    (lambda: converted(minutes=True), RecipeError, "convert() takes as minutes a number, not True"),
    (lambda: converted(task=["features"]), ModelError,
     "convert() takes as task a word: classify, features, segment or detect, not a list"),
    (lambda: converted(weights=3), WeightsError, "convert() takes as weights a .safetensors or .pth file, not 3"),
    (lambda: converted(image_size="32"), ModelError,
     "convert() takes as image_size (height, width), not the text '32'"),
    (lambda: converted(num_classes=-1), ModelError, "convert() takes as num_classes a whole number, not -1"),
    (lambda: converted(model_args="a=1"), ModelError,
     "convert() takes as model_args a dict of what timm.create_model takes, not the text 'a=1'"),
    (lambda: converted(device=0), ModelError, "convert() takes as device a word, such as 'cpu' or 'cuda:1', not 0"),
    (lambda: converted(resume="yes"), cc.CastlingError, "convert() takes as resume True or False, not the text 'yes'"),
    (lambda: converted(console=3), cc.CastlingError, "convert() takes as console a rich Console, not 3"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "line"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_refused_in_one_line_and_nothing_is_written(tmp_path, monkeypatch, call, error, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cc.CastlingError) as refused:
        call()
    assert type(refused.value) is error
    assert "\n" not in str(refused.value)
    assert str(refused.value) == line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return cc.Session(cc.export(FOLDED, tmp_path_factory.mktemp("session") / "model.onnx"))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "None"),
        ("x", "the text 'x'"),
        ({}, "a dict"),
        ([1, 2], "[2]"),
        ([[1], [1, 2]], "a list"),
        (np.zeros((1, 3, 33, 32), np.float32), "[1, 3, 33, 32]"),
        (np.zeros((1, 3, 32, 32), np.int64), "int64"),
        (np.zeros((1, 3, 32, 32), np.complex64), "complex64"),
        (images(1).to_sparse(), "a Tensor of torch.float32 [1, 3, 32, 32]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_session_says_what_it_takes(session, given, what):
    with pytest.raises(DataError) as refused:
        session(given)
    assert str(refused.value) == f"this artifact takes images, float32 [B, 3, 32, 32], not {what}"


def test_a_session_takes_every_kind_of_float(session):
    wanted = session(images(1).numpy())
    for given in (images(1).double(), images(1).requires_grad_(), images(1).bfloat16()):
        np.testing.assert_allclose(session(given), wanted, atol=0.3 if given.dtype == torch.bfloat16 else 1e-5)
    with pytest.raises(DataError, match=r"classes\(\) takes as top a whole number from 1 up, not 0"):
        session.classes(images(1), top=0)


@pytest.mark.parametrize("kind", ["tensor", "array", "float64 array", "half", "tuple of arrays"])
def test_batches_of_any_float_are_the_same_batches(kind):
    """A half of what is exact in it; as the model's own float32."""
    exact = images().half().float()
    given = {
        "tensor": exact, "array": exact.numpy(), "float64 array": exact.double().numpy(), "half": exact.half(),
        "tuple of arrays": (exact.numpy(), np.zeros(2)),
    }[kind]  # fmt: skip
    teacher = tiny()
    one, other = cc.castle(teacher, SHORT), cc.castle(teacher, SHORT)
    distilled([exact], one, teacher)
    distilled([given], other, teacher)
    torch.testing.assert_close(other(images()), one(images()), rtol=0, atol=0)


def test_paths_and_devices_in_their_own_types(tmp_path):
    teacher = tiny()
    student = cc.castle(teacher, Path(__file__).parents[1] / "recipes" / "castling.yaml")
    folder = str(tmp_path / "new" / "run")
    cc.distill(student, teacher, Path("digits"), SHORT, device=torch.device("cpu"), workdir=folder)
    assert (Path(folder) / "metrics.jsonl").is_file()
    cc.save(cc.fold(student), tmp_path / "out", metrics=f"{folder}/metrics.jsonl")
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == (Path(folder) / "metrics.jsonl").read_bytes()


def test_an_argument_that_there_is_not():
    with pytest.raises(TypeError, match=r"^convert\(\) got an unexpected keyword argument 'steps'$"):
        cc.convert("deit_s", "out", steps=2)
    with pytest.raises(TypeError, match=r"^fold\(\) missing a required argument: 'student'$"):
        cc.fold()
