"""In Python: two lines first, then step by step: castle, distil, fold, save, export, run. A minute or two on two cores.

    python examples/convert_in_python.py [FOLDER_OF_IMAGES]

Random weights and a small model keep it short; put your own model name, `pretrained=True` and your images
in their place for a real conversion.
"""

import sys
from pathlib import Path

import timm
import torch

import castling_convert as cc


def main() -> None:
    data = sys.argv[1] if len(sys.argv) > 1 else "generated"
    teacher = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=96, depth=2).eval()
    recipe = cc.Recipe.load("castling", ["distill.steps=10", "distill.batch_size=8"])

    cc.convert(teacher, "castled/example", data=data, recipe=recipe, force=True)
    cc.export("castled/example", format="onnx")

    # The same, step by step.
    student = cc.castle(teacher, recipe)  # a new model; the teacher is untouched
    for layer in student.castling.layers:
        print(f"{layer.name}: {layer.status}, {layer.why}")
    cc.distill(student, teacher, data, recipe)  # data: a spec as for --data, or a loader of image batches
    deploy = cc.fold(student)  # a plain module, no auxiliary branch left

    folder = cc.save(deploy, "castled/example", recipe=recipe, force=True)
    deploy = cc.load(folder)  # or: timm.create_model("local-dir:castled/example", pretrained=True)
    artifact = cc.export(deploy, Path(folder, "model.onnx"))  # parity is checked before the file appears

    images = torch.randn(2, 3, 64, 64)
    session = cc.Session(artifact)  # the same call for files of every format
    with torch.no_grad():
        error = (session(images) - deploy(images)).abs().max()
    print(f"{artifact}: {artifact.stat().st_size / 1e6:.1f} MB, differs from torch by {error:.1e}")


if __name__ == "__main__":
    main()
