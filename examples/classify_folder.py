"""Classify a folder of images with an exported artifact: no torch model, no transforms, one call.

    castling export castled/digits --preprocess --output digits.onnx
    python examples/classify_folder.py digits.onnx FOLDER

The artifact takes uint8 pixels (--preprocess), so all that is left to do here is to decode and resize.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import castling_convert as cc

BATCH = 32


def main() -> None:
    artifact, folder = Path(sys.argv[1]), Path(sys.argv[2])
    session = cc.Session(artifact, batch_size=BATCH)
    if session.signature.input != "pixels":
        sys.exit(f"{artifact} takes normalised images; export it with --preprocess")
    height, width, channels = session.shape
    mode = "L" if channels == 1 else "RGB"
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        images = [Image.open(path).convert(mode).resize((width, height), Image.Resampling.BICUBIC) for path in part]
        pixels = np.stack([np.asarray(image).reshape(session.shape) for image in images])
        probabilities = session(pixels)
        for path, row in zip(part, probabilities, strict=True):
            print(f"{path}: class {row.argmax()} ({row.max():.1%})")


if __name__ == "__main__":
    main()
