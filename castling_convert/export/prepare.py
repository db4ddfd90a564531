"""What is exported: a copy of the model in the asked precision, with its preprocessing if it is wanted.

Half precision is float16 or bfloat16 with float32 islands where magnitudes leave its range: the norms,
the sums over tokens inside castled attention (`attention.angular` keeps them wide itself), and the head,
pooling included, which sees few numbers and costs nothing.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from timm.layers import RmsNorm
from torch import Tensor, nn

from ..attention import CastledAttention, FoldedAttention, Layout
from ..distill.data import Preprocessing
from ..errors import DataError, ExportError, FoldError
from .options import ExportOptions

NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm)


@dataclass(frozen=True)
class Signature:
    """What goes into an artifact and what comes out of it.

    Attributes:
        input_size: (C, H, W); the best one where the size is dynamic.
        smallest, largest: (H, W) that a dynamic size lies between; empty when it is fixed.
        stride: what H and W are multiples of where they are dynamic.
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
    smallest: tuple[int, ...] = ()
    largest: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    def shape(self, size: tuple[int, ...] | None = None) -> tuple[int, int, int]:
        """Of one image of `size` (H, W), `input_size` when left out, as the artifact takes it."""
        channels, (height, width) = self.input_size[0], size or self.input_size[1:]
        return (height, width, channels) if self.input == "pixels" else (channels, height, width)

    @property
    def spatial(self) -> tuple[int, int]:
        """Which axes of the input [B, ...] are height and width."""
        return (1, 2) if self.input == "pixels" else (2, 3)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether images of `shape` [...] without the batch can be given."""
        if not self.stride or len(shape) != 3:
            return shape == self.shape()
        height, width = (shape[axis - 1] for axis in self.spatial)
        sides = zip((height, width), self.smallest, self.largest, self.stride, strict=True)
        inside = all(low <= side <= high and side % stride == 0 for side, low, high, stride in sides)
        return inside and shape == self.shape((height, width))

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

    def logits(self, output: Tensor) -> Tensor:
        """What an artifact gave, [B, classes], as logits up to a constant an image; probabilities below what its type
        holds well count as the smallest that it does."""
        if self.output == "logits":
            return output
        return output.clamp_min(torch.finfo(getattr(torch, self.dtype)).tiny).log()

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
            # Cast first: TensorRT does nothing else with uint8.
            x = x.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
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


def prepare(
    model: nn.Module, options: ExportOptions, *, fused: bool = False, channels_first: Layout | None = None
) -> Deployable:
    """A copy on the CPU at the asked image size and precision; softmax layers in their plain form, or `fused`;
    castled layers with `channels_first` where the runtime is faster so.

    int8 is float32 here: quantisation is done to the graph.

    Raises:
        FoldError: the model still has its training branches.
        ExportError: it can't take that image size, or has no preprocessing to bake in.
    """
    if any(isinstance(module, CastledAttention) for module in model.modules()):
        raise FoldError("the model still has its training branches; fold() it before exporting")
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    if options.image_size is not None and options.image_range is None:
        try:
            model.set_input_size(img_size=options.image_size)  # type: ignore[operator]
        except (AssertionError, ValueError, RuntimeError) as error:
            height, width = options.image_size
            raise ExportError(f"the model can't take {height}x{width} images: {error}") from None
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]
        if isinstance(module, FoldedAttention):
            module.channels_first = channels_first
    signature = signature_of(model, options)
    if options.image_range is not None:
        any_size_(model)
    dtype = options.dtype
    if dtype is not torch.float32:
        to_half_(model, dtype)
    return Deployable(model, signature, dtype).eval()


def signature_of(model: Any, options: ExportOptions) -> Signature:
    """What an artifact of `model` takes and gives.

    Raises:
        ExportError: there is no preprocessing to bake in, or image sizes are no multiples of the patch.
    """
    from timm.models import get_model_input_config

    size = tuple(get_model_input_config(model)["input_size"])
    dtype = "float32" if options.io == "fp32" else str(options.dtype).removeprefix("torch.")
    signature = Signature(size, dtype=dtype)
    if options.preprocess:
        try:
            found = Preprocessing.of(model)
        except DataError as error:
            raise ExportError(f"--preprocess: {error}") from None
        signature = Signature(size, "pixels", "probabilities", dtype, found.mean, found.std)
    if options.image_range is None:
        return signature
    smallest, largest = options.image_range
    best, stride = options.image_size or size[1:], tuple(model.patch_embed.patch_size)
    signature = replace(
        signature, input_size=(size[0], *best), smallest=smallest, largest=largest, stride=stride
    )  # fmt: skip
    for height, width in (smallest, best, largest):
        if not signature.fits(signature.shape((height, width))):
            raise ExportError(
                f"image size {height}x{width} is not within {smallest} to {largest} in multiples of the patch, {stride}"
            )
    return signature


def any_size_(model: Any) -> None:
    """Let a plain ViT take any image size; its position embeddings are resampled to each.

    timm's `dynamic_img_size` does the same by Resize with antialiased cubic filters, which TensorRT does not
    have and OpenVINO computes differently; two small products with the filters' weights run everywhere.
    """
    embed = model.patch_embed
    embed.strict_img_size = False
    if model.pos_embed is None:
        return
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    tokens, positions = model.pos_embed.detach().split([prefix, model.pos_embed.shape[1] - prefix], dim=1)
    first = 0
    for name in ("cls_token", "dist_token", "reg_token"):  # in the order of the sequence
        token = getattr(model, name, None)
        if token is not None and prefix:
            token.data = token.data + tokens[:, first : first + token.shape[1]]
            first += token.shape[1]
    model.pos_embed = nn.Parameter(torch.zeros_like(positions[:, :1]), requires_grad=False)
    grid = positions[0].unflatten(0, embed.grid_size).transpose(1, 2).contiguous()  # height, C, width
    embed.register_buffer("positions", grid, persistent=False)
    embed.register_forward_hook(_add_positions)


def _add_positions(embed: Any, inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
    """Forward hook of a patch embedding: tokens [B, N, C] with the positions of this image's grid."""
    height, width = embed.dynamic_feat_size(tuple(inputs[0].shape[-2:]))
    grid = embed.positions.float()  # old height, C, old width
    rows, columns = cubic_weights(grid.shape[0], height), cubic_weights(grid.shape[2], width)
    # Products of matrices alone: OpenVINO's CPU plugin fails on other ranks.
    wide = (grid.flatten(0, 1) @ columns.T).reshape(grid.shape[0], -1)  # old height, C·width
    resampled = (rows @ wide).reshape(height, grid.shape[1], width).transpose(1, 2)  # height, width, C
    return tokens + resampled.reshape(1, height * width, -1).to(tokens.dtype)


def cubic_weights(old: int, new: int) -> Tensor:
    """The matrix [new, old] that resamples `old` samples to `new` by an antialiased cubic filter, as
    `F.interpolate(mode="bicubic", antialias=True)` does along one axis.

    Source: Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 1981, a = -1/2;
    for new < old the filter is stretched by old / new, and weights are normalised over the samples there are.
    """
    scale = old / torch.full((), new, dtype=torch.float32)  # a tensor: Python's max would freeze a traced size
    centres = (torch.arange(new) + 0.5) * scale
    x = ((torch.arange(old) + 0.5) - centres[:, None]).abs() / scale.clamp_min(1)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)


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
