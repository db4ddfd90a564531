"""Your own model on `nn.TransformerEncoder`, or any other use of `nn.MultiheadAttention`: the reader is there already.

    python examples/custom_transformer.py

See `custom_model.py` for attention of your own, and docs/own_model.md for the page about both.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import castling_convert as cc
from castling_convert.attention import TokenGrid
from castling_convert.families import CalledFamily, MultiheadReader, register

SIZE, PATCH, WIDTH, HEADS, CLASSES = 64, 8, 96, 4, 10


class MyTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    # A model that can be run in two parts says so with these names; then its last tokens are matched too, and its
    # head stays in float32 in an export of half precision.
    def forward_features(self, images: Tensor) -> Tensor:
        return self.encoder(self.embed(images).flatten(2).transpose(1, 2) + self.places)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.classifier(features.mean(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class MyFamily(CalledFamily):
    title = "my transformer"
    models = (MyTransformer,)
    readers = {nn.MultiheadAttention: MultiheadReader}  # noqa: RUF012 - as short as it can be

    def image_size(self, model: MyTransformer) -> tuple[int, int]:
        return SIZE, SIZE

    def token_grid(self, model: MyTransformer) -> TokenGrid:
        return TokenGrid(SIZE // PATCH, SIZE // PATCH, 0)


register(MyFamily())


def main() -> None:
    torch.manual_seed(0)
    teacher = MyTransformer().eval()
    loader = [torch.randn(8, 3, SIZE, SIZE) for _ in range(4)]
    recipe = cc.Recipe.load("castling", ["distill.steps=20", "distill.batch_size=8"])

    student = cc.castle(teacher, recipe)
    for layer in student.castling.layers:
        print(f"{layer.name}: {layer.status}, {layer.why}")
    cc.distill(student, teacher, loader, recipe)
    deploy = cc.fold(student)

    with tempfile.TemporaryDirectory() as folder:
        file = cc.export(deploy, Path(folder, "model.onnx"), batch="dynamic")
        found = cc.Session(file)(loader[0])
    with torch.no_grad():
        error, far = (found - deploy(loader[0])).abs().max(), (found - teacher(loader[0])).abs().max()
    print(f"onnx differs from torch by {error:.1e}, from the softmax model by {far:.1e}")


if __name__ == "__main__":
    main()
