"""A folder of Hugging Face transformers: config.json, weights as safetensors, preprocessor_config.json.

Of the configs plain values are read, see `families.hub_model`; weights are safetensors alone. transformers itself is
never given the folder: it gets the config and the tensors, so that nothing else in there is followed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError, WeightsError, first_line
from .families import family_of, skeleton
from .families.hub_model import LARGEST, class_of, config_of, plain_config

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
LARGEST_JSON = 2**24
"""Bytes; a config with twenty thousand labels has one million."""
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By PIL's number."""


def is_hub_folder(folder: Path) -> bool:
    """Whether the `config.json` there is one of transformers, and none of timm."""
    try:
        values = json.loads(_text(folder / CONFIG))
    except (ValueError, ModelError):
        return False
    return (
        isinstance(values, dict) and "architecture" not in values and bool({"architectures", "model_type"} & {*values})
    )


def load_hub_folder(folder: Path, *, pretrained: bool = True, image_size: tuple[int, int] | None = None) -> nn.Module:
    """The model of a folder, in eval mode on the CPU, as timm's architecture `transformers`.

    Args:
        pretrained: with the weights there; random ones else.
        image_size: (height, width), where the model can be made for another.

    Raises:
        ModelError: its class is not known here, its config is strange, or transformers is not installed.
        WeightsError: no safetensors there, damaged ones, or of another model.
    """
    import timm

    values = _json(folder / CONFIG)
    named = values.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise ModelError(f"{folder / CONFIG} names no class in architectures; save the model with save_pretrained")
    kind = named[0]
    try:
        config = plain_config(kind, values)
        bare: Any = skeleton("transformers", kind=kind, config=config)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    except Exception as error:  # noqa: BLE001 - whatever a constructor makes of strange values
        raise ModelError(f"{folder}: a {kind} can't be made of its config: {first_line(error)}") from None
    if bare.family.any_size:
        config |= _size(folder)
    overlay = _preprocessing(folder, family_of(bare).input_size(bare))
    tensors = _tensors(folder) if pretrained else None
    if tensors is not None:
        _refuse_larger(bare, tensors, folder)
    model: Any = timm.create_model(
        "transformers", kind=kind, config=config, pretrained_cfg_overlay=overlay,
        **({} if tensors is None else {"device": "meta"}),
    )  # fmt: skip
    if tensors is not None:
        model.model = _loaded(kind, config, tensors, folder)
    if "mean" not in overlay:
        model.pretrained_cfg |= {"mean": None, "std": None}  # and not timm's own
    if image_size is not None:
        family_of(model).resize_(model, image_size)
    return model.eval()


def _loaded(kind: str, config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    """transformers renames what older versions of it called otherwise."""
    try:
        with _quiet():
            model, found = class_of(kind).from_pretrained(
                None, config=config_of(kind, config), state_dict=tensors, dtype=torch.float32,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - transformers fails in its own ways
        raise WeightsError(f"the weights in {folder} do not fit its config: {first_line(error)}") from None
    for what, keys in (("of another size", found["mismatched_keys"]), ("missing", found["missing_keys"])):
        if keys:
            first = min(key if isinstance(key, str) else key[0] for key in keys)
            raise WeightsError(
                f"the weights in {folder} are not those of a {kind} with this config: {len(keys)} are {what}, such as "
                f"{first}"
            )
    return model


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("model.safetensors")) or sorted(folder.glob("model-?????-of-?????.safetensors"))
    if not files:
        raise WeightsError(
            f"{folder} holds no model.safetensors, and pickles are not read; save the model with save_pretrained of "
            "transformers, which writes one"
        )
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            found |= load_file(file)
        except Exception as error:  # noqa: BLE001 - safetensors' own, and those of files
            raise WeightsError(f"{file} is damaged or no weights file ({first_line(error)})") from None
    return found


def _refuse_larger(bare: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    described = sum(tensor.numel() for tensor in (*bare.parameters(), *bare.buffers()))
    held = sum(tensor.numel() for tensor in tensors.values())
    if described > 2 * held + 2**24:
        raise WeightsError(f"{folder} describes a model of {described:.2g} numbers, and its weights are {held:.2g}")


def _preprocessing(folder: Path, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """What `Preprocessing.of` reads, as timm has it; without a mean where the folder does not say how images are
    normalised."""
    if not (folder / PREPROCESSOR).is_file():
        return {}
    values, channels = _json(folder / PREPROCESSOR), input_size[0]
    where = folder / PREPROCESSOR
    mean, std = (_numbers(values.get(key), where) for key in ("image_mean", "image_std"))
    if values.get("do_normalize") is False:
        mean, std = [0.0] * channels, [1.0] * channels
    if values.get("do_rescale") is False or abs(_number(values.get("rescale_factor", 1 / 255), where) * 255 - 1) > 1e-3:
        raise ModelError(f"{where} has another range of pixels than 0 to 1, which is not known here")
    if not mean or not std or min(std) <= 0:
        raise ModelError(f"{where} has no image_mean and image_std above zero; correct it, or leave the file out")
    crop_pct, crop_mode = _crop(values, where)
    number = values.get("resample", 2)
    known = isinstance(number, int) and 0 <= number < len(RESAMPLE)
    return {
        "mean": tuple(mean), "std": tuple(std), "interpolation": RESAMPLE[number] if known else "bilinear",
        "crop_pct": crop_pct, "crop_mode": crop_mode,
    }  # fmt: skip


def _size(folder: Path) -> dict[str, Any]:
    """The images that a model is for which takes any, for its config; nothing where the folder does not say."""
    size = _json(folder / PREPROCESSOR).get("size") if (folder / PREPROCESSOR).is_file() else None
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else [size, size]
    return {"image_size": sides} if all(type(side) is int and 0 < side <= LARGEST for side in sides) else {}


def _crop(values: dict[str, Any], where: Path) -> tuple[float, str]:
    """The share of the shorter side that is kept, and what becomes of the rest."""
    size, crop = values.get("size"), values.get("crop_size")
    if isinstance(size, dict) and "longest_edge" in size:
        return 1.0, "border"
    centred = bool(values.get("do_center_crop"))
    shortest = (
        size.get("shortest_edge") if isinstance(size, dict) else size if centred else None
    )  # as older ones have it
    if shortest is None:
        return 1.0, "squash"
    if not centred:
        return 1.0, "center"
    kept = min(crop.values()) if isinstance(crop, dict) and crop else crop or shortest
    share = _number(kept, where) / max(1, _number(shortest, where))
    if not 0 < share <= 4:
        raise ModelError(f"{where} has sizes that are none; correct size and crop_size")
    return share, "center"


def _numbers(values: Any, where: Path) -> list[float]:
    return [_number(value, where) for value in values] if isinstance(values, list) else []


def _number(value: Any, where: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise ModelError(f"{where} is damaged: {str(value)[:40]!r} stands where a number should")
    return value


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is damaged: it is not JSON; copy the folder again") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} is damaged: it is not a JSON object; copy the folder again")
    return values


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST_JSON:
        raise ModelError(f"{path} is refused: no config is larger than {LARGEST_JSON} bytes")
    return path.read_text(encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and reports of what it loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
