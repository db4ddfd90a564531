"""Families whose attention layers have readers: all else is found by looking at one forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..attention import Reader, TokenGrid
from ..errors import ModelError, first_line
from .base import AttentionLayer, Family, Size, set_input_size_
from .half import NORMS, Float32Norm


@dataclass(frozen=True)
class _Call:
    """How a module was called for one image."""

    inputs: tuple[Any, ...]
    more: dict[str, Any]


class Follow:
    """Forward hook of a module that returns a map [B, C, height, width]: a grid becomes that of its patches."""

    def __init__(self, grid: TokenGrid, patch: Size) -> None:
        self.grid, self.patch = grid, patch

    def __call__(self, _module: nn.Module, _inputs: Any, x: Tensor) -> None:
        self.grid.height, self.grid.width = (
            -(-size // patch) for size, patch in zip(x.shape[-2:], self.patch, strict=True)
        )


def follow(grid: TokenGrid, module: nn.Module, patch: Size = (1, 1)) -> None:
    """From now on `grid` is that of the maps that `module` returns; of their patches, those at the border whole. A copy
    of the model has a copy of the grid, in the hook as in the layer."""
    module.register_forward_hook(Follow(grid, patch))


class CalledFamily(Family):
    """A family is its models, the readers of their attention, and why other attention in them is kept.

    Attributes:
        models: classes of models.
        readers: by the exact class of an attention module, what reads it; made of the module alone.
        reasons: by the class of another attention module, why it stays. on_maps: those of them that are called with
            channels before places.
        one_size: whether its models take images of the size that they are made for, and of no other.
    """

    models: ClassVar[tuple[type[nn.Module], ...]] = ()
    readers: ClassVar[Mapping[type[nn.Module], type[Any]]]
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {}
    on_maps: ClassVar[tuple[type[nn.Module], ...]] = ()
    one_size: ClassVar[bool] = False

    def matches(self, model: nn.Module) -> bool:
        """Of one of its classes, with attention: some of them are of models of convolutions, too."""
        return isinstance(model, self.models) and bool(self.block_names(model))

    def kept_because(self, module: nn.Module) -> str | None:
        """Why one module of a class in `readers` can't be castled all the same."""
        return None

    def token_grid(self, model: nn.Module) -> TokenGrid | None:
        """Where the patches of all its layers lie, where the readers can't tell."""
        return None

    def layers(self, model: nn.Module, image_size: Size | None = None) -> list[AttentionLayer]:
        size = image_size or self.image_size(model)
        skeleton = copy.deepcopy(model).eval().requires_grad_(False).to("meta")
        if size != self.image_size(model):
            self.resize_(skeleton, size)
        kinds = (*self.readers, *self.reasons)
        names = [name for name, module in skeleton.named_modules() if isinstance(module, kinds)]
        found: list[AttentionLayer] = []
        blocks: list[str] = []
        with _told_of(type(model).__name__, size):
            # Before the forward, which they may follow.
            readers = {name: self.reader(skeleton, name) for name in names if self._why(skeleton, name) is None}
            calls, macs = _calls(skeleton, names, (self.channels(model), *size))
        for name, call in calls.items():
            parent = name.rpartition(".")[0]
            blocks += [] if parent in blocks else [parent]
            module: Any = skeleton.get_submodule(name)
            reason = self._why(skeleton, name) or readers[name].refuses(*call.inputs, **call.more)
            if reason is None:
                found.append(self._described(name, module, call, macs[name], blocks.index(parent), readers[name]))
                continue
            tokens, dim = _size_of(call, 1 if isinstance(module, self.on_maps) else -1)
            heads = getattr(module, "num_heads", 1)
            kept = AttentionLayer(
                name=name, block=blocks.index(parent), kind=type(module).__name__, num_heads=heads,
                head_dim=dim // heads, tokens=tokens, grid=(1, tokens), prefix=0, dim=dim, keys=tokens, reason=reason,
            )  # fmt: skip
            found.append(kept)
        return found

    def _why(self, model: nn.Module, name: str) -> str | None:
        """Why the layer of this name can't be castled, however it is called."""
        module = model.get_submodule(name)
        if type(module) in self.reasons:
            return self.reasons[type(module)]
        if type(module) not in self.readers:
            return f"{type(module).__name__} changes timm's attention in a way that is not known here"
        return self.kept_because(module)

    def reader(self, model: nn.Module, name: str) -> Reader:
        """What reads the castable layer of this name. A family may look at the model for what the module does not know,
        such as where the tokens lie that it is called with."""
        reader: Reader = self.readers[type(model.get_submodule(name))](model.get_submodule(name))
        grid = self.token_grid(model)
        if grid is not None:
            reader.grid = grid
        return reader

    def _described(
        self, name: str, module: nn.Module, call: _Call, macs: int, block: int, reader: Reader
    ) -> AttentionLayer:
        """A castable layer, after a forward of the model."""
        reading = reader.read(*call.inputs, **call.more)
        windows, heads, tokens, head_dim = reading.q.shape
        if reader.on_grid and reader.grid.tokens != tokens:
            grid = reader.grid
            raise ModelError(
                f"{name} has {tokens} tokens, and {self.title} says that they are {grid.height}x{grid.width} patches "
                f"and {grid.prefix} prefix tokens; correct the family's token_grid(model), or the grid in its reader"
            )
        keys, value_dim = reading.v.shape[2:]
        products = windows * heads * tokens * keys * (head_dim + value_dim)
        return AttentionLayer(
            name=name, block=block, kind=type(module).__name__, num_heads=heads, head_dim=head_dim, tokens=tokens,
            grid=(reader.grid.height, reader.grid.width), prefix=reader.grid.prefix, dim=reader.dim, keys=keys,
            value_dim=value_dim, extra=reader.extra, windows=windows,
            regions=reading.regions.count if reading.regions is not None else 1, masked=reading.regions is not None,
            queries_are_keys=reader.on_grid, takes_windows=reader.takes_windows and reading.regions is None,
            projections=macs - products,
        )  # fmt: skip

    def projections(self, model: nn.Module, layer: AttentionLayer) -> Reader:
        reader = self.reader(model, layer.name)
        reader.grid.height, reader.grid.width = layer.grid
        reader.windows, reader.extra = layer.windows, layer.extra
        if reader.takes_windows and not layer.takes_windows:
            reader.takes_windows = False
        return reader

    def grids(self, model: nn.Module, layers: Sequence[AttentionLayer]) -> dict[str, TokenGrid]:
        return {}

    def block_names(self, model: nn.Module) -> list[str]:
        kinds = (*self.readers, *self.reasons)
        found = [
            name.rpartition(".")[0]
            for name, module in model.named_modules()
            if isinstance(module, kinds) or isinstance(getattr(module, "reader", None), Reader)
        ]
        return list(dict.fromkeys(found))

    def image_size(self, model: nn.Module) -> Size:
        from timm.models import get_model_input_config, get_model_traits

        said = getattr(model, "pretrained_cfg", None) or {}
        if "input_size" not in said and not get_model_traits(model).get("img_size"):
            raise ModelError(
                f"{type(model).__name__} does not say how large its images are; give its family an image_size(model)"
            )
        _, height, width = get_model_input_config(model)["input_size"]
        return height, width

    def patch_size(self, model: Any) -> Size:
        size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        return (size[0], size[1]) if isinstance(size, tuple | list) else super().patch_size(model)

    def resize_(self, model: nn.Module, image_size: Size) -> None:
        if image_size == self.image_size(model):
            return
        if self.one_size:
            made, asked = ("{}x{}".format(*size) for size in (self.image_size(model), image_size))
            raise ModelError(
                f"castled, {type(model).__name__} takes images of {made} alone, not of {asked}; leave out --image-size"
            )
        refuse_castled(model, image_size)
        set_input_size_(model, image_size)

    def see_(self, model: nn.Module, image_size: Size) -> None:
        """Readers see by themselves what they are called with, where neither the family has to tell them a grid nor a
        part of the model that runs before them."""
        hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
        if self.token_grid(model) is not None or any(isinstance(hook, Follow) for hook in hooks):
            super().see_(model, image_size)

    def to_half_(self, model: Any, dtype: torch.dtype) -> None:
        head = self.head_modules(model)
        for name, module in list(model.named_modules()):
            if name not in head and not any(name.startswith(f"{other}.") for other in head):
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
        norms = [name for name, module in model.named_modules() if isinstance(module, NORMS) and name not in head]
        for name in norms:
            if not any(name.startswith(f"{other}.") for other in head):
                model.set_submodule(name, Float32Norm(model.get_submodule(name)))

    def head_modules(self, model: Any) -> set[str]:
        """Names of the model's own modules that `head` runs, which stay in float32."""
        skeleton = copy.deepcopy(model).eval().to("meta")
        found: set[str] = set()
        with _hooked(skeleton, [name for name, _ in skeleton.named_children()], lambda name, *_: found.add(name)):
            features = self.features(skeleton, _image(skeleton, self.input_size(skeleton)))
            found.clear()
            self.head(skeleton, features)
        return found

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        grid = self.token_grid(model)
        return super().tokens(model, features)[0], grid.prefix if grid is not None and features.ndim == 3 else 0


def refuse_castled(model: nn.Module, image_size: Size) -> None:
    """Raise ModelError for a model that has learned places of its image size."""
    if any(isinstance(getattr(module, "reader", None), Reader) for module in model.modules()):
        height, width = image_size
        raise ModelError(
            f"a castled {type(model).__name__} has learned places of one image size; convert the original again "
            f"with --image-size {height}x{width}"
        )


def _calls(
    model: nn.Module, names: Sequence[str], size: tuple[int, int, int]
) -> tuple[dict[str, _Call], dict[str, int]]:
    """How these modules of a model on the meta device are called for one image, in that order, and their MACs."""
    calls: dict[str, _Call] = {}
    images = _image(model, size)
    # Attention as plain products: not every torch counts its fused kernels.
    with (
        _hooked(model, names, lambda name, inputs, more: calls.setdefault(name, _Call(inputs, more))),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(images)
    counts = counter.get_flop_counts()
    whole = f"{type(model).__name__}."
    return calls, {name: sum(counts.get(whole + name, {}).values()) // 2 for name in names}


@contextmanager
def _told_of(name: str, size: Size) -> Iterator[None]:
    """Whatever a model, by the `name` of its class, makes of a size of images that is not for it, in one line."""
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        height, width = size
        raise ModelError(
            f"{name} can't take images of {height}x{width}: {first_line(error)}; give another --image-size"
        ) from None


def _image(model: nn.Module, size: tuple[int, int, int]) -> Tensor:
    """One image on the meta device, [1, C, H, W]."""
    return torch.empty(1, *size, device="meta", dtype=next(model.parameters()).dtype)


@contextmanager
def _hooked(model: nn.Module, names: Sequence[str], seen: Any) -> Iterator[None]:
    """While open, `seen` is called with the name, the arguments and the named arguments of each call of a module."""

    def hook(name: str) -> Any:
        return lambda _module, inputs, more: seen(name, inputs, more) and None

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _size_of(call: _Call, channels: int) -> tuple[int, int]:
    """Tokens and channels of what a module is called with, from this axis of it."""
    x = next(value for value in (*call.inputs, *call.more.values()) if isinstance(value, Tensor))
    return x[0].numel() // x.shape[channels], x.shape[channels]
