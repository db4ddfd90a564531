"""What `distill` is given, held against what it needs before anything is learned from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import CastledAttention, FoldedAttention
from ..castling import castled_layers
from ..errors import DataError, ModelError, described, first_line
from ..families import family_of, input_size_of
from ..families.around import AroundFamily
from ..tasks import task_of
from .mode import at_inference

A_BATCH = "a batch is a float tensor or array [B, C, H, W], or a tuple that starts with one"


def refuse_other_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ModelError where the layers of `student` are not made from those of `teacher`."""
    if any(isinstance(module, CastledAttention | FoldedAttention) for module in teacher.modules()):
        raise ModelError("the teacher is castled itself; give the softmax model that the student was castled from")
    layers = {layer.name: (layer.num_heads, layer.head_dim) for layer in family_of(teacher).layers(teacher)}
    for name, castled in castled_layers(student):
        if layers.get(name) != (castled.num_heads, castled.head_dim):
            raise ModelError(
                f"the teacher has no layer {name} like the student's; give the softmax model that the student was "
                "castled from"
            )
    classes = [task_of(model).classes(model) or "no" for model in (teacher, student)]
    if classes[0] != classes[1]:
        raise ModelError(f"the teacher has {classes[0]} classes and the student {classes[1]}; give one with as many")


def refuse_unread(student: nn.Module, images: Tensor) -> None:
    """Raise ModelError where what `student`, a module around a backbone, makes of `images` is not one tensor or nothing
    of its task, or where a castled layer changes nothing of it and would learn for nobody."""
    family = family_of(student)
    if not isinstance(family, AroundFamily):
        return
    features = family.features(student, images)
    output = family.head(student, features)
    if isinstance(output, Tensor):
        task_of(student).loss(output, output, temperature=1.0)  # an output of another task is refused by that
        read = [output]
    elif isinstance(output, list):  # detections, image by image
        read = [tokens for tokens, _ in family.maps(student, features)]
    else:
        raise ModelError(
            f"{type(student).__name__} returns a {type(output).__name__}, not one tensor; convert the module inside it "
            "that returns what you use, such as its image encoder"
        )
    parameters = {name: next(layer.parameters()) for name, layer in castled_layers(student)}
    with torch.enable_grad():
        total = torch.stack([values.float().square().mean() for values in read]).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    unread = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if unread:
        raise ModelError(
            f"{type(student).__name__} reads nothing of {', '.join(unread)}; leave what it does not read out by layers"
        )


@torch.no_grad()
def refuse_size(model: nn.Module, side: int) -> None:
    """Raise ModelError where `model` can't be let take images of side x side, or its patches would be cut."""
    family, task, first = family_of(model), task_of(model), next(model.parameters())
    if any(side % step for step in family.patch_size(model)):
        raise ModelError(f"data.sizes: {side} is no multiple of the patch, {family.patch_size(model)}; leave it out")
    images = torch.zeros(1, family.channels(model), side, side, dtype=first.dtype, device=first.device)
    castled = next(castled_layers(model), None) is not None
    if castled:
        family.see_(model, (side, side))
    try:
        with at_inference(model), family.taking_sizes(model):
            task.head(model, task.features(model, images))
    except Exception as error:  # noqa: BLE001 - every model refuses in its own way
        raise ModelError(
            f"data.sizes: {type(model).__name__} can't take images of {side}x{side} ({first_line(error)}); leave it out"
        ) from None
    finally:
        if castled:
            family.see_(model, family.image_size(model))


def resized(batches: Iterator[Tensor], sides: Sequence[int], seed: int, first: int) -> Iterator[Tensor]:
    """Batches of images [B, C, H, W], each at one of these sides; which one depends on the seed and on its number, the
    first one's being `first`, alone."""
    for number, images in enumerate(batches, start=first):
        side = sides[int(np.random.default_rng((seed, number)).integers(len(sides)))]
        if images.shape[-2:] == (side, side):
            yield images
        else:
            yield F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


class Intake:
    """Images from whatever a loader gives, in the type of the model's weights."""

    def __init__(self, teacher: nn.Module) -> None:
        self.dtype = next(teacher.parameters()).dtype
        self.shape = list(input_size_of(teacher))

    def images(self, batch: Any) -> Tensor:
        """[B, C, H, W], where the batch is.

        Raises:
            DataError: there are none in it, they are not what the model takes, or hold what is not finite.
        """
        first = batch[0] if isinstance(batch, tuple | list) and batch else batch
        images = torch.from_numpy(first) if isinstance(first, np.ndarray) and first.dtype.kind == "f" else first
        if not isinstance(images, Tensor) or images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
            raise DataError(f"{A_BATCH}, not {described(first)}")
        if list(images.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise DataError(f"the model takes images [B, {wanted}], not {list(images.shape)}")
        if not images.isfinite().all():
            raise DataError("a batch of images holds numbers that are not finite; look at the data and its transforms")
        return images.to(self.dtype)
