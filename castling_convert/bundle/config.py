"""`config.json` of a bundle, which can come from anybody, checked before a model is made from it.

What it may hold is listed here, and all of it is plain: names, numbers within bounds, short texts. Nothing in it can
name a file, an address or code, so that a bundle reads nothing outside its folder.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from ..errors import BundleError, first_line

LARGEST = 2**16
"""No size in a config is larger: of images, patches and layers."""

MOST_BUFFERED = 2**28
"""Numbers that a model makes of its config alone, such as the places in its windows, and that no weights hold."""
HUB = "transformers"
"""The architecture in timm's registry that is made of a config, whose values `families.hub_model` checks further."""
DEEPEST = 200
"""Nor is any model of more blocks; to make some thousand takes minutes."""
_OURS = ("base", "base_args", "castling")

Size = Annotated[int, Field(ge=0, le=LARGEST)]
Text = Annotated[str, Field(max_length=10_000)]
Shape = Annotated[list[Size], Field(min_length=3, max_length=3)]
Channels = Annotated[list[float], Field(min_length=1, max_length=64)]
Plain = Annotated[int, Field(ge=-LARGEST, le=LARGEST)] | Annotated[float, Field(allow_inf_nan=False)] | bool | None
Listing = Annotated[list[Plain], Field(max_length=8)]
Argument = Plain | Annotated[str, Field(max_length=100)] | Listing | Annotated[list[Listing], Field(max_length=8)]

Word = Annotated[str, Field(pattern=r"^\w+$", max_length=100)]
Listed = Annotated[list[Plain | Annotated[str, Field(max_length=100)]], Field(max_length=256)]
HubConfig = Annotated[dict[Word, Argument | Listed], Field(max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Pretrained(_Strict):
    """timm's description of weights, without what says where to get them."""

    architecture: Text | None = None
    tag: Text | None = None
    custom_load: Literal[False] = False
    input_size: Shape
    test_input_size: Shape | None = None
    min_input_size: Shape | None = None
    fixed_input_size: bool = False
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random"]
    crop_pct: Annotated[float, Field(gt=0, le=4)]
    test_crop_pct: Annotated[float, Field(gt=0, le=4)] | None = None
    crop_mode: Literal["squash", "border", "center"]
    mean: Channels
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=64)]
    num_classes: Annotated[int, Field(ge=0, le=10**7)]
    label_offset: Literal[0] | None = None
    label_names: list[Text] | dict[str, Text] | None = None
    label_descriptions: dict[str, Text] | None = None
    pool_size: list[Size] | None = None
    test_pool_size: list[Size] | None = None
    first_conv: Text | list[Text] | None = None
    classifier: Text | list[Text] | None = None
    license: Text | None = None
    description: Text | None = None
    origin_url: Text | None = None
    paper_name: Text | None = None
    paper_ids: Text | list[Text] | None = None
    notes: list[Text] | None = None


class _Layer(_Strict):
    name: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=200)]
    status: Literal["castled", "kept"]
    why: Text


class _Section(BaseModel):
    """Ours; what a later version adds is passed over."""

    model_config = ConfigDict(strict=True)

    format: Annotated[int, Field(ge=1)]
    made_by: Text
    family: Text
    attention: dict[str, Argument]
    layers: Annotated[list[_Layer], Field(max_length=LARGEST)]


class _Castling(_Strict):
    attention: dict[str, Argument]
    layers: Text
    task: Literal["segment", "detect"] | None = None


class _Arguments(BaseModel):
    """The softmax model underneath; further ones are timm's, of the castled model itself, on top of `base_args`."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, Argument] = Field(init=False)

    base: Word
    base_args: dict[str, Argument | HubConfig]
    castling: _Castling

    @model_validator(mode="after")
    def _only_one_has_a_config(self) -> _Arguments:
        for name, value in self.base_args.items():
            if isinstance(value, dict) and (self.base, name) != (HUB, "config"):
                raise ValueError(f"{name} is no plain value")
        return self

    @model_validator(mode="after")
    def _not_too_deep(self) -> _Arguments:
        for name in ("depth", "depths"):
            if _sum(self.base_args.get(name)) > DEEPEST:
                raise ValueError(f"{name} is above {DEEPEST}")
        return self


class _Config(BaseModel):
    """The whole file; keys that nobody reads are passed over."""

    model_config = ConfigDict(strict=True)

    architecture: Literal["castled"]
    num_classes: Annotated[int, Field(ge=0, le=10**7)]
    label_names: list[Text] | dict[str, Text] | None = None
    label_descriptions: dict[str, Text] | None = None
    model_args: _Arguments
    pretrained_cfg: _Pretrained
    castling: _Section


def _sum(value: Any) -> float:
    """Of a number, or of all in a list of lists."""
    if isinstance(value, list):
        return sum(map(_sum, value))
    return value if isinstance(value, int | float) else 0


def check_config(values: dict[str, Any], where: Path) -> None:
    """Check what stands in a `config.json`, `where`.

    Raises:
        BundleError: something is missing, of another type, out of bounds, or has no place there.
    """
    from ..attention import before_forms, config_of

    try:
        _Config.model_validate(values)
        for section in (values["model_args"]["castling"], values["castling"]):
            config_of(before_forms(section["attention"]))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise _refused(where, f"{key}: {first['msg']}") from None
    except ValueError as error:
        raise _refused(where, f"attention: {error}") from None


def check_structure(values: dict[str, Any], where: Path, weights: int) -> None:
    """Check that the model of a `config.json` can be castled, takes the arguments there, and is no larger than the
    `weights` bytes that belong to it. It is made on the meta device, which takes no memory.

    Raises:
        BundleError: it isn't so.
    """
    from ..families import skeleton

    arguments = values["model_args"]
    settings = arguments["base_args"] | {key: value for key, value in arguments.items() if key not in _OURS}
    check_arguments(arguments["base"], settings, where)
    try:
        model = skeleton(arguments["base"], **settings)
    except Exception as error:  # noqa: BLE001 - whatever a constructor makes of strange values
        raise _refused(where, f"{arguments['base']} can't be made so: {first_line(error)}") from None
    if sum(buffer.numel() for buffer in model.buffers()) > MOST_BUFFERED:
        raise _refused(where, f"{arguments['base']} would hold more numbers of its own than any model does")
    numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    if 2 * numbers > weights + 2**20:
        raise _refused(where, f"a model of {numbers:.2g} numbers is described, more than its weights file can hold")


def check_arguments(base: str, settings: Mapping[str, Any], where: Path) -> None:
    """Check that `base` is a timm model that can be castled, and that its constructor knows all `settings`, or that of
    the `backbone` that it is made around: timm's own, such as `checkpoint_path`, would read other files.

    Raises:
        BundleError: it isn't so.
    """
    import timm

    from ..dense.backbone import SMALLEST
    from ..families import family_of, skeleton

    if not timm.is_model(base):
        raise _refused(where, f"timm has no model {base}")
    if base == HUB and find_spec(HUB) is None:
        raise BundleError(
            f"{where} is of a model of Hugging Face transformers: pip install castling-convert[transformers]"
        )
    try:
        model = skeleton(base)
        family = family_of(model, base)
    except Exception as error:  # noqa: BLE001 - the same
        raise _refused(where, first_line(error)) from None
    classes = [cls for cls in type(model).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]
    known = {name for cls in classes for name in inspect.signature(cls.__init__).parameters} | family.arguments
    others = {name: value for name, value in settings.items() if name not in known}
    if "backbone" in known:
        backbone = settings.get("backbone", SMALLEST)
        if not (isinstance(backbone, str) and re.fullmatch(r"\w+", backbone)):
            raise _refused(where, "backbone is no name of a model")
        check_arguments(backbone, others, where)
    elif others:
        raise _refused(where, f"{base} has no argument {next(iter(others))}")


def _refused(where: Path, why: str) -> BundleError:
    return BundleError(f"{where} is damaged or forged ({why}); copy the bundle again, or don't trust it")
