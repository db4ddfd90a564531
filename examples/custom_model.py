"""Your own model: a hand-written ViT with `F.scaled_dot_product_attention`, castled, distilled, folded and exported.

    python examples/custom_model.py

What it takes is a `Reader` of the attention module and a `Family` that says which module that is: the two classes in
the middle. Weights and images are random here; everything in `main` is what you would do with yours. The page about it:
docs/own_model.md.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import castling_convert as cc
from castling_convert.attention import Reader, Reading, TokenGrid
from castling_convert.families import CalledFamily, register

SIZE, PATCH, WIDTH, HEADS, CLASSES = 64, 8, 96, 3, 10


class MyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), MyAttention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MyViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2, WIDTH))
        self.layers = nn.Sequential(MyBlock(), MyBlock())
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2) + self.places
        x = torch.cat([self.cls.expand(images.shape[0], -1, -1), patches], 1)
        return self.classifier(self.layers(x)[:, 0])


class MyReader(Reader):
    """`MyAttention`, cut in two: what comes before the softmax, and what comes after it."""

    def __init__(self, attention: MyAttention) -> None:
        super().__init__()
        self.qkv, self.out = attention.qkv, attention.out  # the trained modules themselves
        self.num_heads, self.head_dim, self.dim = HEADS, WIDTH // HEADS, WIDTH
        self.value_dim, self.softmax_scale = self.head_dim, self.head_dim**-0.5

    def read(self, x: Tensor) -> Reading:  # takes what MyAttention.forward takes
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return Reading(q, k, v)  # each [B, heads, N, d]

    def write(self, y: Tensor, reading: Reading) -> Tensor:  # y, [B, N, heads·d], to what MyAttention.forward returns
        return self.out(y)


class MyFamily(CalledFamily):
    title = "my ViT"
    models = (MyViT,)
    readers = {MyAttention: MyReader}  # noqa: RUF012 - as short as it can be

    def image_size(self, model: MyViT) -> tuple[int, int]:
        return SIZE, SIZE

    def token_grid(self, model: MyViT) -> TokenGrid:
        return TokenGrid(SIZE // PATCH, SIZE // PATCH, 1)  # rows and columns of patches; one token before them


register(MyFamily())


def main() -> None:
    torch.manual_seed(0)
    teacher = MyViT().eval()
    loader = [torch.randn(8, 3, SIZE, SIZE) for _ in range(4)]  # anything that gives batches, normalised as yours are
    recipe = cc.Recipe.load("castling", ["distill.steps=20", "distill.batch_size=8"])

    student = cc.castle(teacher, recipe)
    for layer in student.castling.layers:
        print(f"{layer.name}: {layer.status}, {layer.why}")
    cc.distill(student, teacher, loader, recipe)
    deploy = cc.fold(student)

    with tempfile.TemporaryDirectory() as folder:
        file = cc.export(deploy, Path(folder, "model.onnx"), batch="dynamic")  # parity is checked before it appears
        found = cc.Session(file)(loader[0])
    with torch.no_grad():
        error, far = (found - deploy(loader[0])).abs().max(), (found - teacher(loader[0])).abs().max()
    print(f"onnx differs from torch by {error:.1e}, from the softmax model by {far:.1e}")


if __name__ == "__main__":
    main()
