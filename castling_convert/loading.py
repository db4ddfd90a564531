"""Load: from a model's name to a timm model with weights, or one clear line."""

from __future__ import annotations

import difflib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .errors import BundleError, ModelError, WeightsError, first_line
from .families import castable_names, family_of, skeleton
from .files import expanded
from .hub_folder import is_hub_folder, load_hub_folder
from .recipe import read_yaml

ALIASES = {
    "deit_t": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
    "deit3_s": "deit3_small_patch16_224",
    "deit3_b": "deit3_base_patch16_224",
    "vit_t": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
    "vit_l": "vit_large_patch16_224",
    "dinov2_s": "vit_small_patch14_dinov2",
    "dinov2_b": "vit_base_patch14_dinov2",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "pvt_v2_b1": "pvt_v2_b1",
    "levit_128s": "levit_128s",
    "mvitv2_t": "mvitv2_tiny",
}

MOST_UNPACKED = 20
"""Times its own size that a file of weights may unpack to. torch packs nothing."""


def resolve_name(name: str) -> str:
    """A timm model name from an alias, a timm name, or a `hf-hub:` or `local-dir:` name.

    Raises:
        ModelError: no such model; near names are suggested.
    """
    import timm

    name = ALIASES.get(name, name)
    if name.startswith("local-dir:"):
        folder = expanded(name.removeprefix("local-dir:"))
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} holds no config.json; local-dir: takes a folder saved by timm's save_for_hf "
                "or by save_pretrained of transformers"
            )
        return f"local-dir:{folder}"
    if name.startswith("hf-hub:"):
        return name
    if name and Path(name).is_dir():
        raise ModelError(f"{name} is a folder; write local-dir:{name} to load a model from it")
    if timm.is_model(name.split(".")[0]):
        return name
    known = [*ALIASES, *castable_names(), *timm.list_models()]
    near = difflib.get_close_matches(name, dict.fromkeys(known), n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "list what can be castled with: castling models"
    raise ModelError(f"no model named '{name}' in timm or among the aliases; {hint}")


def load_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A timm model in eval mode on the CPU.

    Args:
        name: alias, timm name, `hf-hub:` name, or `local-dir:` name of a folder of timm's or of transformers'.
        pretrained: download or read the weights that belong to the name. Ignored when `weights` is given.
        weights: a .safetensors or .pth file; never unpickled except with weights_only=True.
        image_size: (height, width); position embeddings are resized by timm.
        num_classes: of the head. With `weights` it is read from the file when left out.
        model_args: handed to `timm.create_model`.

    Raises:
        ModelError: unknown name, an argument the model does not take, an unsupported family.
        WeightsError: weights can't be had, can't be read, or do not fit.
    """
    import timm

    resolved = resolve_name(name)
    arguments: dict[str, Any] = dict(model_args or {})
    if image_size is not None:
        arguments["img_size"] = image_size
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if weights is not None:
        arguments |= _weights_arguments(resolved, expanded(weights), num_classes)
        pretrained = True
    if resolved.startswith("local-dir:"):
        folder = Path(resolved.removeprefix("local-dir:")).resolve()
        if is_hub_folder(folder):
            return _of_hub_folder(folder, pretrained, image_size, num_classes, model_args)
        resolved = f"local-dir:{folder}"
    refuse_unsupported(resolved, arguments)
    if pretrained and weights is None:
        known = _known_config(resolved)
        if known is not None and known.has_weights:
            _refuse_random_head(resolved, known.num_classes, num_classes)
        _require_hub(resolved, name)
    try:
        model = timm.create_model(resolved, pretrained=pretrained, **arguments)
    except (ModelError, WeightsError, BundleError):
        raise
    except Exception as error:
        raise _explained(error, name, weights) from error
    if pretrained and weights is None:  # of a folder or a repository this is known now
        _refuse_random_head(name, model.pretrained_cfg.get("num_classes"), num_classes)
    model.eval()
    family_of(model, name).layers(model)  # refuses images too small for a patch
    if weights is not None:
        # The path of a file on this machine is nobody else's business.
        model.pretrained_cfg.pop("file", None)
    return model


def _of_hub_folder(
    folder: Path,
    pretrained: bool,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
    model_args: Mapping[str, Any] | None,
) -> nn.Module:
    """A model of transformers, which its folder says all about."""
    if model_args:
        raise ModelError(f"{folder} says itself how its model is made; leave out --model-arg {next(iter(model_args))}")
    model: Any = load_hub_folder(folder, pretrained=pretrained, image_size=image_size)
    if num_classes not in (None, model.num_classes):
        raise WeightsError(
            f"the head in {folder} has {model.num_classes} classes, one of {num_classes} is random; leave out "
            "--num-classes"
        )
    family_of(model, folder.name).layers(model)  # refuses images too small for a patch
    return model


def refuse_unsupported(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise ModelError for a model no family supports, before a byte of weights is downloaded.

    The model is built on the meta device, which takes no memory and no time to initialise.
    """
    if name.startswith(("hf-hub:", "local-dir:")):
        return  # their architecture is known only after the config was read
    try:
        bare = skeleton(name, **_without_weights(arguments))
    except TypeError as error:
        raise _explained(error, name, None) from error
    except Exception:  # noqa: BLE001 - a model that can't be built on meta is built for real right after
        return
    family_of(bare, name)


def _known_config(resolved: str) -> Any:
    """What timm knows of pretrained weights by their name; None of those in a folder or a repository."""
    from timm.models import get_pretrained_cfg

    return None if resolved.startswith(("local-dir:", "hf-hub:")) else get_pretrained_cfg(resolved)


def _refuse_random_head(name: str, there: int | None, num_classes: int | None) -> None:
    """timm would put a head of random weights on pretrained features; a conversion would distil noise."""
    if there is not None and num_classes not in (None, 0, there):
        raise WeightsError(
            f"the pretrained head of {name} has {there} classes, one of {num_classes} is random; "
            "leave out --num-classes, or give --weights FILE of a model fine-tuned to them"
        )


def _require_hub(resolved: str, name: str) -> None:
    """Raise WeightsError at once when the hub is needed and can't be reached.

    huggingface_hub itself would try for most of a minute before it says so.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    if resolved.startswith("hf-hub:"):
        repository: str | None = resolved.removeprefix("hf-hub:").partition("@")[0]
    else:
        repository = getattr(_known_config(resolved), "hf_hub_id", None)
    cached = ("model.safetensors", "pytorch_model.bin")
    if repository is None or any(isinstance(try_to_load_from_cache(repository, file), str) for file in cached):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        raise _offline(name) from error


def _offline(name: str) -> WeightsError:
    return WeightsError(
        f"weights of {name} can't be downloaded (no network, and none in the cache); "
        "give --weights FILE, or --no-pretrained for random weights"
    )


def _without_weights(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != "pretrained_cfg_overlay"}


def _weights_arguments(name: str, path: Path, num_classes: int | None) -> dict[str, Any]:
    """What `create_model` needs to load `path`: the source, and the classes and channels the file has."""
    from timm.models import get_pretrained_cfg

    state = read_state_dict(path)
    if name.startswith(("hf-hub:", "local-dir:")):
        raise WeightsError(f"--weights can't be combined with {name}, which brings its own; give a timm name")
    config = get_pretrained_cfg(name)
    classifier = config.classifier if config is not None else "head"
    head = classifier[0] if isinstance(classifier, tuple | list) else classifier
    overlay: dict[str, Any] = {"file": str(path.resolve()), "custom_load": False}
    arguments: dict[str, Any] = {"pretrained_cfg_overlay": overlay}
    rows = state.get(f"{head}.weight")
    if rows is not None and rows.ndim:
        classes = rows.shape[0]
        if num_classes not in (None, classes):
            raise WeightsError(
                f"{path} has a head of {classes} classes, not {num_classes}; leave out --num-classes to use it"
            )
        overlay["num_classes"] = arguments["num_classes"] = classes
    stem = state.get(f"{config.first_conv}.weight") if config is not None else None
    if stem is not None and stem.ndim == 4 and config is not None:
        arguments["in_chans"] = stem.shape[1]
        overlay["input_size"] = (stem.shape[1], *config.input_size[1:])
    return arguments


def read_state_dict(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors or torch file, by timm's reader, with weights_only=True.

    Raises:
        WeightsError: not there, truncated, or a pickle that holds more than tensors.
    """
    from timm.models import load_state_dict

    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give the weights file, or load a model folder with local-dir:{path}")
    if not path.is_file():
        raise WeightsError(f"weights file {path} not found")
    size = unpacked(path)
    if size > MOST_UNPACKED * path.stat().st_size:
        raise WeightsError(f"{path} is refused: it would unpack to {size / 1e6:,.0f} MB, as no weights do")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's, about the pickles of others; an error says what is wrong
            return dict(load_state_dict(str(path)))
    except Exception as error:
        if _holds_code(error):
            raise WeightsError(
                f"{path} is refused: it holds more than tensors, and code in it is never run; "
                "save the weights as .safetensors"
            ) from None
        what = f"{type(error).__name__}: {first_line(error)}"
        raise WeightsError(f"{path} is damaged or no weights file ({what})") from error


def unpacked(path: Path) -> int:
    """How many bytes an archive says that it holds; of what is none, 0."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return 0


def _holds_code(error: BaseException | None) -> bool:
    """Whether torch refused to unpickle something with weights_only=True; timm wraps that error."""
    while error is not None:
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explained(error: Exception, name: str, weights: str | Path | None) -> Exception:
    """What timm, huggingface_hub or torch raised, as one line with the fix."""
    text = first_line(error)
    kind = type(error).__name__
    if _holds_code(error):
        return WeightsError(f"{name} is refused: its weights hold more than tensors; save them as .safetensors")
    if weights is not None:
        return WeightsError(f"{weights} doesn't fit {name}: {_summary(error)}")
    if isinstance(error, TypeError) and "unexpected keyword argument 'img_size'" in text:
        return ModelError(f"timm makes {name} without an image size of its own; leave out --image-size")
    if isinstance(error, TypeError) and "unexpected keyword" in text:
        return ModelError(f"{name} doesn't take a --model-arg: {text.split('__init__() ')[-1]}")
    offline = (
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectError",
        "URLError",
        "ConnectionError",
    )
    if kind in offline or isinstance(error, ConnectionError | TimeoutError):
        return _offline(name)
    if "No pretrained weights exist" in text:
        return WeightsError(f"timm has no pretrained weights for {name}; give --weights FILE or --no-pretrained")
    if kind in ("RepositoryNotFoundError", "GatedRepoError", "HfHubHTTPError", "EntryNotFoundError"):
        return ModelError(f"{name} can't be had from the hub: {text}")
    return ModelError(f"{name} can't be created: {_summary(error)}")


def _summary(error: Exception) -> str:
    """One line of torch's many about keys and shapes."""
    text = str(error)
    counts = [
        f"{len(keys.split(','))} {label} keys (such as {keys.split(',')[0].strip()})"
        for label, keys in (("missing", _between(text, "Missing key(s) in state_dict: ")),
                            ("unexpected", _between(text, "Unexpected key(s) in state_dict: ")))
        if keys
    ]  # fmt: skip
    if "size mismatch for" in text:
        counts.append(f"sizes differ (such as {_between(text, 'size mismatch for ', ':')})")
    return "; ".join(counts) or first_line(error)


def _between(text: str, start: str, end: str = "\n") -> str:
    _, found, rest = text.partition(start)
    return rest.partition(end)[0].strip().rstrip(".") if found else ""


def parse_model_args(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` pairs as keyword arguments; values are read as YAML (numbers, true, [1, 2])."""
    arguments = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip().isidentifier():
            raise ModelError(f"--model-arg takes key=value, such as drop_path_rate=0.1, not '{pair}'")
        try:
            arguments[key.strip()] = _number(read_yaml(value))
        except ValueError:
            raise ModelError(f"--model-arg {key}: '{value}' can't be read") from None
    return arguments


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; everybody who types it means the number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
