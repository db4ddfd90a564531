"""onnxsim against onnxslim against neither, on the graphs of `castling export`.

    python benchmarks/simplifiers.py            needs: pip install onnxslim

For every kind of model and for a full-size DeiT-S: nodes left, nodes after onnxruntime's own optimiser,
seconds taken, and the largest difference of the outputs to the graph that was not simplified.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import onnxslim
import timm
import torch

import castling_convert as cc
from castling_convert.artifact.options import ExportOptions
from castling_convert.artifact.prepare import prepare
from castling_convert.castling import close_masks
from castling_convert.exporting.onnx_graph import to_proto

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
MODELS = {
    "deit": ("deit_tiny_patch16_224", SMALL),
    "deit3": ("deit3_small_patch16_224", SMALL),
    "dinov2": ("vit_small_patch14_reg4_dinov2", SMALL),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "clip": ("vit_base_patch32_clip_224", SMALL),
    "siglip": ("vit_base_patch16_siglip_224", SMALL),
    "deit_s, full size": ("deit_small_patch16_224", {}),
}
SIMPLIFIERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "none": lambda proto: proto,
    "onnxsim": lambda proto: onnxsim.simplify(proto)[0],
    "onnxslim": onnxslim.slim,
}


def run(proto: onnx.ModelProto, folder: Path, images: np.ndarray) -> tuple[np.ndarray, int]:
    """The outputs, and how many nodes onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images})
    return output, len(onnx.load(folder / "optimised.onnx").graph.node)


def main() -> None:
    print(f"onnxsim {onnxsim.__version__}, onnxslim {onnxslim.__version__}, onnxruntime {onnxruntime.__version__}\n")
    print("| model | precision | simplifier | nodes | nodes in onnxruntime | seconds | difference |")
    print("|---|---|---|---|---|---|---|")
    for title, (name, arguments) in MODELS.items():
        torch.manual_seed(0)
        student = cc.castle(timm.create_model(name, **arguments))
        close_masks(student)
        model = cc.fold(student)
        for precision in ("fp32", "fp16"):
            options = ExportOptions.make(precision=precision, simplify=False)
            prepared = prepare(model, options)
            plain = to_proto(prepared, options)
            images = torch.randn(2, *prepared.signature.input_size).numpy()
            with tempfile.TemporaryDirectory() as folder:
                reference, _ = run(plain, Path(folder), images)
                for simplifier, simplify in SIMPLIFIERS.items():
                    copy = onnx.ModelProto()
                    copy.CopyFrom(plain)
                    started = time.monotonic()
                    proto = simplify(copy)
                    seconds = time.monotonic() - started
                    output, left = run(proto, Path(folder), images)
                    difference = np.abs(output - reference).max()
                    cells = (title, precision, simplifier, len(proto.graph.node), left, f"{seconds:.1f}")
                    print("| " + " | ".join(map(str, cells)) + f" | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
