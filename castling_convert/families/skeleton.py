"""A model without its numbers: what it is made of, in no memory and little time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLING = frozenset({
    "add_", "clamp_", "copy_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_",
    "kaiming_normal_", "kaiming_uniform_", "trunc_normal_",
})  # fmt: skip
"""What initialisers are made of."""


class _NothingFilled(TorchFunctionMode):
    """Filling a tensor on the meta device does nothing, at once: it holds no numbers, and torch takes longer to find
    that out for the weights of a model than all else does."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")  # so torch.nn.init calls it
        if getattr(function, "__name__", "") in FILLING and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return function(*args, **kwargs)


def skeleton(name: str, **arguments: Any) -> nn.Module:
    """timm's model `name` on the meta device, by the constructor's `arguments`.

    Raises:
        Exception: whatever timm makes of the name or the arguments.
    """
    import timm

    with _NothingFilled():
        try:
            return timm.create_model(name, pretrained=False, device="meta", **arguments)
        except TypeError as error:
            if "unexpected keyword argument 'device'" not in str(error):
                raise
        with torch.device("meta"):  # of a model that is registered with timm, and does not say where it is made
            return timm.create_model(name, pretrained=False, **arguments)
