"""The prediction before training: what is measured, and what it says in words."""

from __future__ import annotations

import pytest
import torch

import castling_convert as cc
from castling_convert.analysis.analyze import LayerAnalysis, advise, analyze, castled_twin, shapes
from castling_convert.analysis.macs import count_macs
from castling_convert.attention import AttentionCost, FoldedAttention
from castling_convert.bench import layers as layers_module
from castling_convert.bench.cases import CASTLED, PLAIN, Case, Result
from castling_convert.bench.latency import Latency, Ratio
from castling_convert.bench.layers import BreakEven, LayerLatency, Layers
from castling_convert.errors import ExportError, ModelError
from tests.models import KINDS, images, tiny

RECIPE = cc.Recipe.load("castling")


@pytest.mark.slow
def test_layers_and_whole_models_at_every_size(monkeypatch):
    monkeypatch.setattr(layers_module, "SIDES", (3, 5))  # each is an export of every variant
    found = analyze(
        "tiny", tiny(), recipe=RECIPE, image_sizes=((32, 32), (16, 48)),
        runtimes=("onnx", "torch"), threads=1, seconds=0,
    )  # fmt: skip
    assert [(layer.image_size, layer.tokens) for layer in found.layers] == [((32, 32), 17), ((16, 48), 13)]
    for layer in found.layers:
        assert layer.names == ["blocks.0.attn", "blocks.1.attn"]
        assert set(layer.latency) == {"onnx", "torch"}
        assert all(one.tokens == layer.tokens and one.ratio > 0 for one in layer.latency.values())
    assert [str(result.case) for result in found.cases] == [
        f"{runtime} fp32, {size}, batch 1" for size in ("32x32", "16x48") for runtime in ("onnx", "torch")
    ]
    assert len(found.advice) == 4
    assert {one.runtime for one in found.break_even} == {"onnx", "torch"}
    assert all([tried.tokens for tried in one.tried] == [10, 26] for one in found.break_even)
    assert found.threads == 1
    assert found.recipe == "castling"
    assert 0 < found.minutes < 60


@pytest.mark.parametrize("kind", KINDS)
def test_the_costs_of_the_layers_are_the_difference_of_the_models(kind):
    softmax = tiny(KINDS[kind])
    folded = castled_twin(softmax, RECIPE)
    (layer,) = shapes(softmax, folded, RECIPE, (32, 32))
    saved = len(layer.names) * (layer.softmax.macs - layer.castled.macs)
    assert count_macs(softmax) - count_macs(folded) == saved


def test_the_twin_is_castled_and_nothing_in_it_is_zero():
    softmax = tiny()
    twin = castled_twin(softmax, RECIPE)
    attention = twin.blocks[0].attn
    assert isinstance(attention, FoldedAttention)
    assert attention.depthwise.weight.count_nonzero() == attention.depthwise.weight.numel()
    assert not isinstance(softmax.blocks[0].attn, FoldedAttention)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "openvino", "torch"])
def test_a_layer_alone_computes_what_it_does_in_the_model(runtime, tmp_path):
    softmax = tiny()
    twin = castled_twin(softmax, RECIPE)
    seen = {}
    for name, model in (("castled", twin), ("softmax", softmax)):
        handle = model.blocks[1].attn.register_forward_hook(lambda _m, i, o, name=name: seen.update({name: (i[0], o)}))
        with torch.no_grad():
            model(images(1))
        handle.remove()
    alone = Layers(twin, softmax, "blocks.1.attn", runtime, 1)
    for index, (variant, layer) in enumerate(alone.layers.items()):
        x, expected = seen["castled" if variant == CASTLED else "softmax"]
        out = layers_module.runnable(runtime, layer, x, 1, tmp_path / f"{index}.onnx")()
        out = out if runtime == "torch" else torch.from_numpy(out[0] if runtime == "openvino" else out)
        torch.testing.assert_close(out.reshape(expected.shape), expected, atol=2e-4, rtol=1e-3)


# --- the break-even


@pytest.mark.parametrize(
    ("ratios", "tokens", "words"),
    [([0.5, 0.8, 2.0, 3.0], "between", "from about"), ([1.2, 1.3], None, "at every length tried, from 26 tokens"),
     ([0.5] * 8, None, "not faster castled at the longest length tried, 3137 tokens")],
)  # fmt: skip
def test_the_break_even_is_looked_for_until_castling_is_clearly_ahead(monkeypatch, ratios, tokens, words):
    given = iter(ratios)
    monkeypatch.setattr(
        Layers, "measure", lambda self, side, *_: LayerLatency(1 + side**2, next(given), 1.0)
    )  # fmt: skip
    softmax = tiny()
    found = Layers(castled_twin(softmax, RECIPE), softmax, "blocks.0.attn", "torch", 1).break_even(0, 1)
    assert words in str(found)
    assert "3 heads of 16" in str(found)
    if tokens is None:
        assert found.tokens is None
    else:
        assert 50 < found.tokens < 101  # between sides 7 and 10
        assert len(found.tried) == 4  # two in a row are clear, no more are needed


# --- the words


def result(ratio: float, low: float | None = None) -> Result:
    latency = {CASTLED: Latency(1.0, 1.0, 5), PLAIN: Latency(ratio, ratio, 5)}
    return Result(Case("onnx", "fp32", (224, 224), 1), 197, 2, latency, PLAIN, Ratio(ratio, low or ratio, ratio))


def layer(name: str, ratio: float) -> LayerAnalysis:
    cost = AttentionCost(1, 1)
    return LayerAnalysis([name], (224, 224), 197, 6, 64, cost, cost, {"onnx": LayerLatency(197, ratio, 1.0)})


@pytest.mark.parametrize(
    ("ratio", "low", "gain", "words"),
    [
        (0.95, None, "none", "the gain is small to none, 0.95x [0.95, 0.95]; castling is not worth it here"),
        (1.02, None, "none", "not worth it here"),
        (1.08, 0.97, "none", "not worth it here"),
        (1.6, 0.9, "none", "not worth it here"),
        (1.08, None, "small", "the gain is small, 1.08x [1.08, 1.08]; castle all 2 layers, if a few per cent"),
        (1.3, None, "moderate", "the gain is moderate, 1.30x [1.30, 1.30]; castle all 2 layers"),
        (2.3, None, "large", "the gain is large, 2.30x [2.30, 2.30]; castle all 2 layers"),
    ],
)
def test_the_advice_in_plain_words(ratio, low, gain, words):
    if low is not None:
        assert f"[{low:.2f}, " in advise(result(ratio, low), [layer("a", 1.2)]).sentence
    found = advise(result(ratio, low), [layer("a", 1.2), layer("b", 1.3)])
    assert found.gain == gain
    assert words in found.sentence
    assert found.sentence.startswith("onnx fp32, 224x224, batch 1: ")
    assert found.layers == ([] if gain == "none" else ["a", "b"])


def test_layers_that_do_not_pay_are_not_advised():
    found = advise(result(1.4), [layer("a", 0.8), layer("b", 1.9)])
    assert found.layers == ["b"]
    assert found.sentence.endswith("castle these layers: b")
    whole = advise(result(1.4), [layer("a", 0.8)])  # the whole model gains, in int8 say: its own figure counts
    assert whole.layers == ["a"]
    assert whole.sentence.endswith("castle all 1 layers")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"runtimes": ("trt",)}, ExportError, "not in 'trt'"),
        ({"precisions": ("fp8",)}, ExportError, "can't be made in 'fp8'"),
        ({"recipe": cc.Recipe.load("castling", ["layers=7"])}, Exception, "7 is not within"),
        ({"image_sizes": ((32, 32), (4, 32))}, ModelError, "images of 4x32 hold no patch"),
    ],
)
def test_what_can_not_be_analysed(options, error, words):
    with pytest.raises(error, match=words):
        analyze("tiny", tiny(), **{"recipe": RECIPE, "seconds": 0, **options})


def test_a_model_that_can_not_be_castled():
    import timm

    with pytest.raises(ModelError):
        analyze("resnet", timm.create_model("resnet18"), recipe=RECIPE, seconds=0)


def test_a_break_even_is_plain_data():
    assert BreakEven("onnx", 3, 16, None, [LayerLatency(5, 1, 2)]).to_dict()["tried"][0]["tokens"] == 5
