"""What is exported: a copy of the model in the asked precision, with its preprocessing if it is wanted.

Half precision is float16 or bfloat16 with float32 islands where magnitudes leave its range: the norms,
the sums over tokens inside castled attention (`attention.angular` keeps them wide itself), and the head,
pooling included, which sees few numbers and costs nothing.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.layers import RmsNorm
from torch import Tensor, nn

from ..attention import CastledAttention
from ..distill.data import Preprocessing
from ..errors import DataError, ExportError, FoldError
from .options import ExportOptions

NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm)


@dataclass(frozen=True)
class Signature:
    """What goes into an artifact and what comes out of it.

    Attributes:
        input_size: (C, H, W).
        input: `images`, float [B, C, H, W] normalised by the model's mean and std; or `pixels`, uint8
            [B, H, W, C] as decoded, when the preprocessing is part of the artifact.
        output: `logits`, or `probabilities` when the softmax is part of it; [B, classes].
        dtype: of a float input and of the output.
        mean, std: for one channel each, of pixels in 0..1.
    """

    input_size: tuple[int, int, int]
    input: str = "images"
    output: str = "logits"
    dtype: str = "float32"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Signature:
        values: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(text).items()}
        return cls(**values)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 pixels [B, H, W, C] of normalised images [B, C, H, W]; exact for images that were pixels."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def inputs(self, images: Tensor) -> Tensor:
        """What the artifact takes, for normalised float32 images [B, C, H, W]."""
        return self.pixels(images) if self.input == "pixels" else images.to(getattr(torch, self.dtype))


class Deployable(nn.Module):
    """images or pixels -> model -> logits or probabilities, as a `Signature` says."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, signature: Signature, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.signature = signature
        self.dtype = dtype
        if signature.input == "pixels":
            # (x / 255 - mean) / std as one multiplication and one addition
            std = torch.tensor(signature.std)
            self.register_buffer("scale", (1 / (255 * std))[:, None, None])
            self.register_buffer("shift", (-torch.tensor(signature.mean) / std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.signature.input == "pixels":
            x = x.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        features = self.model.forward_features(x.to(self.dtype))  # type: ignore[operator]
        logits = self.model.forward_head(features.float())  # type: ignore[operator]
        out = logits.softmax(-1) if self.signature.output == "probabilities" else logits
        return out.to(getattr(torch, self.signature.dtype))


class Float32Norm(nn.Module):
    """A norm whose squares and sums are float32, whatever comes in; what goes out is as what came in."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


def prepare(model: nn.Module, options: ExportOptions, *, fused: bool = False) -> Deployable:
    """A copy on the CPU at the asked image size and precision; softmax layers in their plain form, or `fused`.

    int8 is float32 here: quantisation is done to the graph.

    Raises:
        FoldError: the model still has its training branches.
        ExportError: it can't take that image size, or has no preprocessing to bake in.
    """
    if any(isinstance(module, CastledAttention) for module in model.modules()):
        raise FoldError("the model still has its training branches; fold() it before exporting")
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    if options.image_size is not None:
        try:
            model.set_input_size(img_size=options.image_size)  # type: ignore[operator]
        except (AssertionError, ValueError, RuntimeError) as error:
            height, width = options.image_size
            raise ExportError(f"the model can't take {height}x{width} images: {error}") from None
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]
    signature = signature_of(model, options)
    dtype = options.dtype
    if dtype is not torch.float32:
        to_half_(model, dtype)
    return Deployable(model, signature, dtype).eval()


def signature_of(model: nn.Module, options: ExportOptions) -> Signature:
    from timm.models import get_model_input_config

    size = get_model_input_config(model)["input_size"]
    dtype = "float32" if options.io == "fp32" else str(options.dtype).removeprefix("torch.")
    if not options.preprocess:
        return Signature(tuple(size), dtype=dtype)
    try:
        found = Preprocessing.of(model)
    except DataError as error:
        raise ExportError(f"--preprocess: {error}") from None
    return Signature(found.input_size, "pixels", "probabilities", dtype, found.mean, found.std)


def to_half_(model: Any, dtype: torch.dtype) -> None:
    """Everything before the head in `dtype`, its norms excepted."""
    for name in ("patch_embed", "norm_pre", "blocks"):
        getattr(model, name).to(dtype)
    for parameter in model.parameters(recurse=False):  # tokens and position embeddings
        parameter.data = parameter.data.to(dtype)
    features = [(name, module) for name, module in model.named_modules() if isinstance(module, NORMS)]
    for name, module in features:
        if name.startswith(("patch_embed.", "blocks.")) or name in ("norm_pre", "norm"):
            model.set_submodule(name, Float32Norm(module))
