"""What a family has to answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Format
from torch import Tensor, nn

from ..attention import Projections, Reader, Shape, TokenGrid
from ..errors import ModelError

Size = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a model, castable or not.

    Attributes:
        name: dotted module name, such as `blocks.3.attn`.
        block: number of its transformer block in forward order, None outside the blocks.
        kind: class name of the module.
        tokens: sequence length N of its queries at the image size that was asked for.
        grid: height and width of its patches. prefix: how many tokens there are beside them.
        dim: channels of a token.
        keys: sequence length of its keys, N too where they are not reduced.
        reason: why it can't be castled; None when it can.
        value_dim: channels of v for each head, head_dim where it is left out.
        extra: channels that q and k have more in the linear form, for a bias of places.
        windows: how many of them, of N tokens each, it is called with for one image. regions: the most that a window
            has of them, parts that do not see each other. masked: whether some tokens do not see some others.
        queries_are_keys: whether the tokens that look are those that are looked at. takes_windows: whether they are no
            window already.
        projections: MACs of all that makes q, k and v and takes the heads back, of one image; left out, those of q, k,
            v and the output by `dim`.
    """

    name: str
    block: int | None
    kind: str
    num_heads: int
    head_dim: int
    tokens: int
    grid: Size
    prefix: int
    dim: int
    keys: int
    reason: str | None = None
    value_dim: int | None = None
    extra: int = 0
    windows: int = 1
    regions: int = 1
    masked: bool = False
    queries_are_keys: bool = True
    takes_windows: bool = True
    projections: int | None = None

    @property
    def castable(self) -> bool:
        return self.reason is None

    @property
    def shape(self) -> Shape:
        """What its cost is computed from."""
        return Shape(
            self.tokens, self.dim, self.num_heads, self.head_dim, self.prefix, self.keys, self.value_dim, self.extra,
            self.windows, self.regions, self.projections,
        )  # fmt: skip


class Family(ABC):
    """One model family, and all that is known of its structure: nobody else looks inside a model.

    `timm_modules` are the timm modules whose models belong to it; `excluded` are names of theirs that have nothing to
    castle, and why. `arguments` are those of its models that no signature of a constructor names.
    """

    title: str
    timm_modules: tuple[str, ...] = ()
    excluded: Mapping[str, str] = {}
    arguments: frozenset[str] = frozenset()

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether `model` belongs to this family."""

    @abstractmethod
    def layers(self, model: nn.Module, image_size: Size | None = None) -> list[AttentionLayer]:
        """Every attention layer of `model`, in forward order, castable or with the reason why not.

        Args:
            image_size: what its tokens are counted at; the model's own when left out.

        Raises:
            ModelError: such images hold no patch.
        """

    @abstractmethod
    def projections(self, model: nn.Module, layer: AttentionLayer) -> Projections | Reader:
        """The trained modules of a castable layer, or what reads them."""

    @abstractmethod
    def grids(self, model: nn.Module, layers: Sequence[AttentionLayer]) -> dict[str, TokenGrid]:
        """The grid of each of these layers, by name; it follows the images that the model is given."""

    @abstractmethod
    def block_names(self, model: nn.Module) -> list[str]:
        """Names of the transformer blocks, in forward order. Their matrices are what Muon is for, and folding is
        certified after each."""

    @abstractmethod
    def image_size(self, model: nn.Module) -> Size:
        """What the model is made for now."""

    def input_size(self, model: nn.Module) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels(model), *self.image_size(model)

    # What follows has an answer that is right for a model without the thing it is about.

    def channels(self, model: nn.Module) -> int:
        """Of the images that it takes."""
        from timm.models import get_model_input_config

        return get_model_input_config(model)["input_size"][0]

    def classes(self, model: nn.Module) -> int | None:
        """How many it tells apart, 0 where what it returns is features; None: as the model says itself."""
        return None

    def task(self, model: nn.Module) -> str | None:
        """The name of the task that the model says it is for, None where it says none."""
        return getattr(model, "task", None)

    def features(self, model: Any, images: Tensor) -> Tensor:
        """What the head takes of images, [B, C, H, W]; all that the model returns where it has no two parts."""
        return model.forward_features(images) if hasattr(model, "forward_features") else model(images)

    def head(self, model: Any, features: Tensor) -> Tensor:
        """What the model returns for images with these `features`, one tensor."""
        return model.forward_head(features) if hasattr(model, "forward_head") else features

    def tokens(self, model: nn.Module, features: Tensor) -> tuple[Tensor, int]:
        """What `features` gives, as tokens [B, N, C], and how many of them are prefix tokens. What is no tokens counts
        as one."""
        tokens = features if features.ndim == 3 else features.flatten(1)[:, None]
        return tokens, getattr(model, "num_prefix_tokens", 0) if features.ndim == 3 else 0

    def maps(self, model: nn.Module, features: Any) -> list[tuple[Tensor, int]]:
        """What a student's features are compared by: `tokens`, of several feature maps those of each."""
        return [self.tokens(model, features)]

    def trunk(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """What is trained beside the castled layers: all of it, but for a head around a backbone."""
        return model.parameters()

    def several(self, model: nn.Module) -> str | None:
        """Why no bundle and no artifact can be made of what it returns; None where they can."""
        return None

    def has_token_dropout(self, model: nn.Module) -> bool:
        """Whether training drops tokens, which empties places of the patch grid."""
        return False

    def absorb_layer_scale_(self, model: nn.Module) -> int:
        """Multiply every LayerScale into the projection before it, in place; the number absorbed."""
        return 0

    def patch_size(self, model: nn.Module) -> Size:
        """What image sizes are multiples of, where they may differ."""
        return 1, 1

    def resize_(self, model: nn.Module, image_size: Size) -> None:
        """Make the model one for images of another size, position embeddings resampled.

        Raises:
            ModelError: it can't be.
        """
        if image_size != self.image_size(model):
            set_input_size_(model, image_size)

    def see_(self, model: nn.Module, image_size: Size) -> None:
        """Tell castled layers that what they are called with next is of images of this size, of which there was no
        forward of the model.

        Raises:
            ModelError: the layers do not follow the size of images.
        """
        if image_size != self.image_size(model):
            raise ModelError(
                f"training with images of several sizes is not known for {self.title}; leave out data.sizes"
            )

    @contextmanager
    def taking_sizes(self, model: Any) -> Iterator[None]:
        """Let the model take images of other sizes while it lasts. One that can't be let refuses them itself."""
        changes = self.not_of_one_size(model)
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        try:
            for owner, name, value in changes:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def not_of_one_size(self, model: Any) -> list[tuple[Any, str, Any]]:
        """What timm would have made otherwise in a model of several sizes: attributes, and their values there."""
        embed = getattr(model, "patch_embed", None)
        changes: list[tuple[Any, str, Any]] = []
        if hasattr(embed, "strict_img_size"):
            changes.append((embed, "strict_img_size", False))
        if getattr(embed, "flatten", False) and getattr(model, "dynamic_img_size", True) is False:
            # Position embeddings are then resampled to the grid.
            changes.append((model, "dynamic_img_size", True))
            changes += [(embed, "flatten", False), (embed, "output_fmt", Format.NHWC)]
        # Of shifted windows, computed for the grid that comes.
        changes += [(module, "dynamic_mask", True) for module in model.modules() if hasattr(module, "dynamic_mask")]
        return changes

    def any_size_(self, model: nn.Module) -> None:
        """Let the model take any image size, by operators that every runtime has.

        Raises:
            ModelError: it can't be.
        """
        raise ModelError(f"an export for a range of image sizes is not known for {self.title}; give one --image-size")

    def to_half_(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Everything before the head in `dtype`, the islands that need float32 excepted.

        Raises:
            ModelError: what needs float32 is not known.
        """
        raise ModelError(f"which parts of {self.title} need float32 is not known; export in fp32 or int8")


def set_input_size_(model: Any, image_size: Size) -> None:
    """timm's own way to another image size; ModelError with the reason where it has none."""
    height, width = image_size
    if not hasattr(model, "set_input_size"):
        raise ModelError(
            f"{type(model).__name__} keeps the image size it was made with; make it for {height}x{width} images, "
            f"one of timm's by --model-arg img_size=[{height},{width}]"
        )
    try:
        model.set_input_size(img_size=image_size)
    except (AssertionError, AttributeError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model can't take {height}x{width} images: {error}") from None
