"""What is exported: a copy of the model in the asked precision, with its preprocessing if it is wanted.

Half precision is float16 or bfloat16 with float32 islands where magnitudes leave its range: the norms,
the sums over tokens inside castled attention (`attention.angular` keeps them wide itself), and the head,
pooling included, which sees few numbers and costs nothing.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import CastledAttention, ChannelsFirst, FoldedAttention
from ..data.preprocessing import Preprocessing
from ..errors import DataError, ExportError, FoldError, ModelError, described
from ..families import family_of, input_size_of
from ..tasks import task_of
from .options import ExportOptions
from .signature import Signature


class Deployable(nn.Module):
    """images or pixels -> model -> logits, probabilities or features, as a `Signature` says."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, signature: Signature, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.task = task_of(model)
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
        out = self._output(x)
        if self.signature.output == "probabilities":
            out = self.task.probabilities(out)
        return out.to(getattr(torch, self.signature.dtype))

    def _output(self, x: Tensor) -> Any:
        return self.task.head(self.model, _float32(self.task.features(self.model, x.to(self.dtype))))

    @torch.no_grad()
    def refuse_lists(self, images: Tensor) -> None:
        """Raise ExportError where the model returns something else than one tensor for normalised `images`."""
        if self.task.reads_maps and not isinstance(out := self._output(images), Tensor):
            raise ExportError(
                f"{type(self.model).__name__} returns {described(out)}, and an artifact gives one tensor; export a "
                "model that returns what the list is made of, as castling's own detector does"
            )


def _float32(features: Any) -> Any:
    """Of all branches, where a model has several."""
    return [branch.float() for branch in features] if isinstance(features, list | tuple) else features.float()


def prepare(
    model: nn.Module, options: ExportOptions, *, fused: bool = False, channels_first: ChannelsFirst | None = None
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
    family = family_of(model)
    several = family.several(model)
    if several is not None:
        raise ExportError(f"{type(model).__name__} can't be exported: {several}")
    if options.image_size is not None and options.image_range is None:
        try:
            family.resize_(model, options.image_size)
        except ModelError as error:
            raise ExportError(str(error)) from None
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]
        if isinstance(module, FoldedAttention):
            module.channels_first = channels_first
    signature = signature_of(model, options)
    dtype = options.how.dtype
    try:
        if options.image_range is not None:
            family.any_size_(model)
        if dtype is not torch.float32:
            folded = [module for module in model.modules() if isinstance(module, FoldedAttention)]
            wide = [(module, name, getattr(module, name)) for module in folded for name in module.wide_buffers]
            family.to_half_(model, dtype)
            for module, name, values in wide:
                setattr(module, name, values)
    except ModelError as error:
        raise ExportError(str(error)) from None
    return Deployable(model, signature, dtype).eval()


def signature_of(model: Any, options: ExportOptions) -> Signature:
    """What an artifact of `model` takes and gives.

    Raises:
        ExportError: there is no preprocessing to bake in, or image sizes are no multiples of the patch.
    """
    size = input_size_of(model)
    dtype = "float32" if options.io == "fp32" else str(options.how.dtype).removeprefix("torch.")
    output = task_of(model).output
    signature = Signature(size, output=output, dtype=dtype)
    if options.preprocess:
        try:
            found = Preprocessing.of(model)
        except DataError as error:
            raise ExportError(f"--preprocess: {error}") from None
        output = "probabilities" if output == "logits" else output
        signature = Signature(size, input="pixels", output=output, dtype=dtype, mean=found.mean, std=found.std)
    if options.image_range is None:
        return signature
    smallest, largest = options.image_range
    best, stride = options.image_size or size[1:], family_of(model).patch_size(model)
    signature = replace(
        signature, input_size=(size[0], *best), smallest=smallest, largest=largest, stride=stride
    )  # fmt: skip
    for height, width in (smallest, best, largest):
        if not signature.fits(signature.shape((height, width))):
            raise ExportError(
                f"image size {height}x{width} is not within {smallest} to {largest} in multiples of the patch, {stride}"
            )
    return signature
