"""torch.compile takes the training and the folded form whole: one graph, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import castling_convert as cc
from castling_convert.castling import castled_layers
from tests.models import FAST, FEATURES, KINDS, LANDMARKS, SNIPPET, WINDOW, closed_student, images, recipe, shake_, tiny

FORMS = {
    "row_sum": {},
    "fast": FAST,
    "default": LANDMARKS,
    "features": FEATURES,
    "window": WINDOW,
    "snippet": SNIPPET,
}
MASKS = [(0.0, 1.0), (0.02, 1.0), (0.05, 1.0), (0.0, 0.5), (0.0, 0.2), (1.0, 1.0)]
"""Open, two thresholds, two gates, closed."""

pytestmark = pytest.mark.slow


def depth_of(kind: str) -> int:
    """Two layers are one program, too, of the first kind; one has all that there is of the others."""
    return 1 + (kind == "deit")


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch._dynamo.reset()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["deit", "dinov2"])
def test_training_form_forwards_and_backwards(kind, form):
    student = shake_(cc.castle(tiny(KINDS[kind], depth=depth_of(kind)), recipe(**FORMS[form])), seed=1).train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(student, fullgraph=True, backend=counter)  # a graph break would raise

    def gradients(model):
        student.zero_grad()
        out = model(images())
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in student.parameters() if p.grad is not None)]

    for mask in MASKS:
        for _, layer in castled_layers(student):
            layer.set_mask(*mask)
        for expected, actual in zip(gradients(student), gradients(compiled), strict=True):
            torch.testing.assert_close(actual, expected)
    # Whole, thinned and closed masks are three programs; other thresholds and gates need none of their own.
    assert counter.frame_count == 3


@pytest.mark.parametrize(
    ("kind", "form"), [*((kind, "default") for kind in KINDS), *(("deit", form) for form in FORMS if form != "default")]
)
@torch.no_grad()
def test_folded_form(kind, form):
    folded = cc.fold(closed_student(tiny(KINDS[kind], depth=depth_of(kind)), **FORMS[form]))
    compiled = torch.compile(folded, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), folded(images()))
