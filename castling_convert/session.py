"""Session: one call for every kind of artifact."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .artifact.caches import engine_cache
from .artifact.runner import Runner
from .artifact.signature import DETECTIONS, Signature
from .errors import PATH, DataError, ExportError, Wanted, described, is_number, takes
from .exporting import format_of
from .files import expanded

Array = TypeVar("Array", np.ndarray, Tensor)

PROVIDERS = {
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
}
"""onnxruntime's providers for each device, in the order they are asked for."""

OF_PLACES = ("masks", "boxes", DETECTIONS)
"""Outputs that say something of places, and not of an image as a whole."""


class Session:
    """An exported artifact, ready to run: `session(images) -> logits`.

    Takes a numpy array or a torch tensor and gives the same kind back. What goes in is `signature.input`:
    float images [B, C, H, W] normalised as the model wants them, or with `--preprocess` uint8 pixels
    [B, H, W, C]; what comes out, [B, ...] in float32, is `signature.output`. Any number of images
    may be given; batches are split to what the artifact was built for. Calls from several threads take turns.

    Args:
        artifact: a file of `castling export`.
        device: `cpu`, `cuda`, or for ONNX files `tensorrt` (onnxruntime's TensorRT provider). Left out, the
            CPU for ONNX, torch and OpenVINO files, the GPU for engines.
        batch_size: the most images of one call of the runtime; all at once when left out.
        warm_up: run one image now, so that the first real call does not pay for it.

    Attributes:
        signature: what goes in and comes out. running_on: the device or provider that was really got.

    Raises:
        ExportError: the artifact is missing or damaged, or its runtime or the device is not here. A device
            that was asked for is never silently replaced by another.
    """

    @takes(
        artifact=Wanted(PATH, ExportError, "the file of an exported artifact"),
        device=Wanted(str, ExportError, "a word, such as 'cpu' or 'cuda'"),
        batch_size=Wanted(lambda value: is_number(value) and isinstance(value, int), ExportError, "a whole number"),
    )
    def __init__(
        self, artifact: str | Path, *, device: str | None = None, batch_size: int | None = None, warm_up: bool = True
    ) -> None:
        path = expanded(artifact)
        if not path.is_file():
            raise ExportError(f"artifact {path} not found; make it with: castling export")
        if batch_size is not None and batch_size < 1:
            raise ExportError(f"batch_size must be at least 1, not {batch_size}")
        self.format = format_of(path).name
        self._runner, self.running_on = _open(self.format, path, device)
        self._lock = threading.Lock()
        self._batch_size = batch_size
        self.signature: Signature = self._runner.signature
        if warm_up:
            self(np.zeros((1, *self.shape), self.dtype))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (C, H, W), or (H, W, C) for pixels; of the best size where it is dynamic."""
        return self.signature.shape()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the images: uint8 for pixels, else float32; a half-precision input is cast inside."""
        return np.dtype(np.uint8 if self.signature.input == "pixels" else np.float32)

    def __call__(self, images: Array) -> Array:
        """images [B, ...] to what `signature.output` says: logits or probabilities, [B, classes], or features, or
        the boxes [B, N, 4 + kinds] of a detector; `detections` are [M, 7], of all images: the number of the image, x1,
        y1, x2, y2, kind, score.

        Raises:
            DataError: another shape or type than the artifact takes, or no image at all.
        """
        values = self._array(images)
        self._refuse(values)
        batch = torch.from_numpy(np.require(values, requirements=["C", "W"]))  # a copy of what is read-only
        if self.signature.input != "pixels":
            batch = batch.to(getattr(torch, self.signature.dtype))
        step = self._batch_size or len(values)
        with self._lock:
            rows = [
                self.signature.rows(self._runner.rows(batch[start : start + step].numpy()), start, step)
                for start in range(0, len(values), step)
            ]
        out = np.concatenate(rows).astype(np.float32, copy=False)
        return torch.from_numpy(out) if isinstance(images, Tensor) else out

    def classes(self, images: Array, top: int = 1) -> np.ndarray:
        """The `top` most likely classes of each image, [B, top], the likeliest first."""
        if not isinstance(top, int) or top < 1:
            raise DataError(f"classes() takes as top a whole number from 1 up, not {described(top)}")
        if self.signature.output in OF_PLACES:
            raise DataError(
                f"classes() is for images of one class each, and this artifact gives {self.signature.output}"
            )
        out = self(images)
        values = out.numpy() if isinstance(out, Tensor) else out
        return np.argsort(-values, axis=-1, kind="stable")[:, :top]

    def _array(self, images: Any) -> np.ndarray:
        try:
            if isinstance(images, Tensor):
                half = images.dtype == torch.bfloat16  # which numpy does not have
                return (images.float() if half else images).detach().cpu().numpy()
            return np.asarray(images)
        except (TypeError, ValueError, RuntimeError):  # sparse, quantized, or of lists of different lengths
            raise DataError(f"this artifact takes {self._wanted()}, not {described(images)}") from None

    def _wanted(self) -> str:
        wanted = f"{self.signature.input}, {self.dtype} [B, {', '.join(map(str, self.shape))}]"
        if self.signature.stride:
            low, high, stride = self.signature.smallest, self.signature.largest, self.signature.stride
            wanted += f" of any size from {low} to {high} in multiples of {stride}"
        return wanted

    def _refuse(self, values: np.ndarray) -> None:
        wanted = self._wanted()
        if values.ndim == 0:
            raise DataError(f"this artifact takes {wanted}, not {described(values.item())}")
        if values.ndim != 4 or not self.signature.fits(values.shape[1:]):
            raise DataError(f"this artifact takes {wanted}, not {list(values.shape)}")
        if len(values) == 0:
            raise DataError("no image was given")
        right = values.dtype == np.uint8 if self.signature.input == "pixels" else values.dtype.kind == "f"
        if not right:
            raise DataError(f"this artifact takes {wanted}, not {values.dtype}")


def _open(kind: str, path: Path, device: str | None) -> tuple[Runner, str]:
    if kind == "onnx":
        return _onnx(path, device or "cpu")
    if kind == "torch":
        from .exporting.torch_program import ProgramModel

        if device not in (None, "cpu") and not torch.cuda.is_available():
            raise ExportError(f"device {device} is not here; use device='cpu', or see: castling doctor")
        return ProgramModel(path, device or "cpu"), device or "cpu"
    fixed = "cuda" if kind in ("trt", "trt-rtx") else "cpu"
    if device not in (None, fixed):
        raise ExportError(f"{path} runs on {fixed} alone, not on {device}")
    return format_of(path).exporter.open_artifact(path), fixed


def _onnx(path: Path, device: str) -> tuple[Runner, str]:
    import onnxruntime

    from .artifact.onnx_model import OnnxModel

    if device not in PROVIDERS:
        raise ExportError(f"device '{device}' is none of {', '.join(PROVIDERS)}")
    wanted = PROVIDERS[device]
    if wanted[0] not in onnxruntime.get_available_providers():
        raise ExportError(
            f"this onnxruntime has no {wanted[0]}; install onnxruntime-gpu in place of onnxruntime, or use device='cpu'"
        )
    cache = str(engine_cache(path))  # building an engine takes minutes, reading it back seconds
    cached = {"trt_engine_cache_enable": True, "trt_engine_cache_path": cache,
              "trt_timing_cache_enable": True, "trt_timing_cache_path": cache}  # fmt: skip
    opened = OnnxModel(path, [(name, cached) if name == "TensorrtExecutionProvider" else name for name in wanted])
    if opened.providers[0] != wanted[0]:
        raise ExportError(
            f"onnxruntime could not start {wanted[0]} and took {opened.providers[0]}; see its messages above"
        )
    return opened, opened.providers[0]
