"""Recipes: YAML files that say how a conversion is done, validated and versioned."""

from __future__ import annotations

import os
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from .attention import DEFAULT, FORMS, AttentionConfig, before_forms, config_of
from .errors import PATH, RecipeError, Wanted, did_you_mean, takes
from .files import expanded

VERSION = 2

LARGEST = 2**18
"""Bytes of a recipe file."""

HIGHEST = 1e20
"""Rate of learning: far beyond all use, and times everything it is multiplied by still a float32."""


def _refuse_booleans(model: type[BaseModel], values: Any) -> None:
    """ValueError for a yes or no where a number belongs; pydantic would take it for 1 or 0."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, bool) and key in model.model_fields and model.model_fields[key].annotation is not bool:
            raise ValueError(f"{key} is no yes or no, so it can't be {str(value).lower()}")


class _Section(BaseModel):
    # A single block, layers: 3, is a number in YAML and a text here.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        _refuse_booleans(cls, values)
        return values


class MaskConfig(_Section):
    """How the masks of the softmax branch close. Shares are of the steps of the second phase.

    `threshold` raises the smallest softmax weight that is kept, geometrically from `start / N` to 1 for
    N tokens; `gate` multiplies the whole branch by a factor that falls from 1 to 0; `none` never opens
    it. Layers close `together`, or one after the other from the `first` on or from the `last`. What is
    open is the softmax of the layer's `own` q and k, or, by a gate alone, the `teacher`'s own layer.
    """

    schedule: Literal["threshold", "gate", "none"] = "none"
    branch: Literal["own", "teacher"] = "own"
    order: Literal["together", "first", "last"] = "together"
    start: float = Field(default=1.0, gt=0)
    open_until: float = Field(default=0.0, ge=0, lt=1)
    closed_from: float = Field(default=0.3, gt=0, lt=1)

    @model_validator(mode="after")
    def _in_order(self) -> MaskConfig:
        fields = type(self).model_fields
        keys = ("branch", "order", "start", "open_until", "closed_from")
        idle = [key for key in keys if getattr(self, key) != fields[key].default]
        if self.schedule == "none" and idle:
            raise ValueError(
                f"{idle[0]} has no effect with schedule 'none'; set distill.mask.schedule to gate or threshold"
            )
        if self.schedule == "threshold" and self.branch == "teacher":
            raise ValueError("a threshold drops entries of the layer's own softmax; branch 'teacher' needs a gate")
        if self.open_until >= self.closed_from:
            raise ValueError("open_until must come before closed_from")
        return self


class LossConfig(_Section):
    """Weights of what the whole student matches; labels are never used.

    `attention`: squared error of every castled layer's output over the teacher's variance, channel by channel (see
    `distillation.losses.channel_error`). `logits`: KL divergence at `temperature`, times its square. `features`: one
    minus the cosine of the last features, of prefix tokens and of patches.
    """

    attention: float = Field(default=1.0, ge=0)
    logits: float = Field(default=1.0, ge=0)
    features: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, ge=1e-3, le=1e3)

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        if not (self.attention or self.logits or self.features):
            raise ValueError("at least one loss weight must be above zero")
        return self


class AlignConfig(_Section):
    """The first phase, layers alone: each castled layer learns the teacher's output on the teacher's input.

    `share` of all steps. AdamW at `lr` for what a layer inherits, and at `lr * added` for what castling added to it, up
    to four times as high for large weights and small heads (see `distillation.optimizers.align_optimizer`); a linear
    warm-up, then a linear fall to zero. `echo`: how many steps learn from each batch; what the teacher made of it is
    kept so long.
    """

    share: float = Field(default=0.8, ge=0, le=1)
    lr: float = Field(default=2.5e-4, gt=0, le=HIGHEST)
    added: float = Field(default=40.0, gt=0, le=1e6)
    echo: int = Field(default=2, ge=1)


class OptimizerConfig(_Section):
    """The optimiser of the second phase, the whole student; a linear warm-up and a `cosine` or `linear` fall to zero.

    `adamw` is AdamW on all. `muon` is Muon on the blocks' matrices and AdamW, at `lr * fallback`, on everything else:
    norms, biases, gains, embeddings, the head, depthwise kernels; its step is scaled by the shape of the matrix (Keller
    Jordan's rule). `added`: how much faster what castling added learns, with `adamw`. `train` says what learns:
    everything, or the castled layers alone; `head` also what a segmenter or a detector has around its backbone, which
    stays as it is otherwise. `guard`: before the phase begins, a few steps are tried; as long as they
    make the student worse, they are undone and the rate is lowered.
    """

    name: Literal["muon", "adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, le=HIGHEST)  # of adamw; 0.03 of muon
    added: float = Field(default=10.0, gt=0, le=1e6)
    fallback: float = Field(default=0.07, gt=0, le=1e6)
    decay: Literal["cosine", "linear"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0, le=1e6)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip_grad: float = Field(default=1.0, gt=0)
    train: Literal["all", "attention", "head"] = "all"
    guard: bool = True

    @model_validator(mode="before")
    @classmethod
    def _rate_of(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("lr") is None and values.get("name") == "muon":
            return {**values, "lr": 0.03}
        return values


class DataConfig(_Section):
    """Training images: timm's random resized crop between `scale` and 1 of the area, and flips. `sizes`: every batch is
    resized to one of these, the side of a square, drawn for it; left out, all have the size that the model is for, or a
    smaller one where that has very many patches (see `distillation.budget`)."""

    scale: float = Field(default=0.35, gt=0, le=1)
    hflip: float = Field(default=0.5, ge=0, le=1)
    workers: int | None = Field(default=None, ge=0, le=256)
    sizes: tuple[Annotated[int, Field(ge=1, le=2**14)], ...] | None = Field(default=None, min_length=1, max_length=64)


class DistillConfig(_Section):
    """The distillation run: so many `steps`, or where they are left out as many as learn from so many `images`. Of a
    `batch_size` left out see `distillation.budget`. `refit`: at its end the classifier is fitted to the features that
    the student has then (see `distillation.readout`), where the second phase trains it. A checkpoint is written after
    `checkpoint_every` steps, and after `checkpoint_minutes` where the steps are slow."""

    images: int = Field(default=25_600, ge=1, le=10**12)
    steps: int | None = Field(default=None, ge=1, le=10**9)
    batch_size: int | None = Field(default=None, ge=1, le=10**6)
    seed: int = Field(default=0, ge=0, lt=2**32)
    align: AlignConfig = AlignConfig()
    refit: bool = True
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpoint_every: int = Field(default=200, ge=1)
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


class SettledDistill(DistillConfig):
    """With nothing left out."""

    steps: int = Field(ge=1, le=10**9)
    batch_size: int = Field(ge=1, le=10**6)

    @property
    def aligned(self) -> int:
        """The steps of the first phase."""
        return round(self.align.share * self.steps)


def _attention(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    config = config_of(values)
    _refuse_booleans(type(config), values)
    return config


Attention = Annotated[SerializeAsAny[AttentionConfig], BeforeValidator(_attention)]
"""The config of whichever linear form is named."""


OVERRIDES = Wanted(
    lambda value: isinstance(value, tuple | list) and all(isinstance(text, str) for text in value),
    RecipeError,
    "a list of texts such as 'distill.steps=100'",
)


class Recipe(_Section):
    """A whole recipe. `Recipe.load` reads one; unknown keys are refused."""

    version: Literal[2] = 2
    name: str = "unnamed"
    description: str = ""
    layers: str = "all"
    attention: Attention = config_of({})
    distill: DistillConfig = DistillConfig()
    data: DataConfig = DataConfig()

    @classmethod
    @takes(source=Wanted(PATH, RecipeError, "the name of a shipped recipe or the path of a file"), overrides=OVERRIDES)
    def load(cls, source: str | Path, overrides: Iterable[str] = ()) -> Self:
        """A shipped recipe by name, or a YAML file by path, with `a.b=value` overrides on top.

        Raises:
            RecipeError: not found, not YAML, an unknown key (with the nearest valid ones), a bad value.
        """
        path = find(str(source))
        return cls.parse(_read(path), str(path), overrides)

    @classmethod
    def of(cls, recipe: Recipe | str | os.PathLike[str]) -> Recipe:
        """A recipe itself, or what `load` takes."""
        return recipe if isinstance(recipe, Recipe) else cls.load(os.fspath(recipe))

    @classmethod
    def parse(cls, values: Any, where: str, overrides: Iterable[str] = ()) -> Self:
        """A recipe from nested dicts; `where` names their origin in messages."""
        if not isinstance(values, dict):
            raise RecipeError(f"{where}: a recipe is a YAML mapping; see: castling recipes show castling")
        values = migrate(values)
        _refuse_unknown(cls, values, where)
        cls._validate(values, where)
        for override in overrides:
            values = _override(values, override)
        return cls._validate(values, where)

    @classmethod
    def _validate(cls, values: dict[str, Any], where: str) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise RecipeError(f"{where}: {key or 'recipe'}: {message}") from None

    def override(self, *overrides: str) -> Self:
        """A copy with `a.b=value` overrides applied. Another optimiser brings its own rate, where this has the default
        one of its own."""
        OVERRIDES.refuse_another(overrides, "override() takes")
        values = self.model_dump()
        optimizer = values["distill"]["optimizer"]
        if optimizer["lr"] == OptimizerConfig(name=optimizer["name"]).lr:
            del optimizer["lr"]
        return self.parse(values, f"recipe {self.name}", overrides)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class SettledRecipe(Recipe):
    """For one model: nothing of how long to train, and in which batches, is left out."""

    distill: SettledDistill


A_RECIPE = Wanted((Recipe, *PATH), RecipeError, "a Recipe, the name of a shipped one or the path of a file")
"""What `Recipe.of` takes."""


def migrate(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe of version 1 in the words of version 2; any other as it is.

    Version 1 knew no linear forms, trained by Muon in batches of 64, and began with the whole student unless
    `distill.align` said for what share of the steps not to. How the error of a layer is measured has changed since,
    too.
    """
    if values.get("version") != 1 or not all(
        isinstance(values.get(key) or {}, dict) for key in ("attention", "distill")
    ):
        return values
    distill = dict(values.get("distill") or {})
    optimizer = distill.get("optimizer") or {}
    if isinstance(optimizer, dict):
        rate = {"lr": 3e-3} if optimizer.get("name") == "adamw" and optimizer.get("lr") is None else {}
        before = {"name": "muon", "weight_decay": 0.01, "added": 1.0, "guard": False}
        distill["optimizer"] = {**before, **optimizer, **rate}
    align = distill.get("align", 0.0)
    distill = {"batch_size": 64, "refit": False, **distill}
    distill["align"] = align if isinstance(align, dict) else {"share": align}
    loss = distill.get("loss") or {}
    distill["loss"] = {"features": 0.0, **loss} if isinstance(loss, dict) else loss
    attention = before_forms(values.get("attention") or {})
    return {**values, "version": VERSION, "attention": attention, "distill": distill}


def shipped_folder() -> Path:
    """Where the shipped recipes lie: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def find(source: str) -> Path:
    """The file of a recipe given by name or path."""
    known = shipped()
    if source in known:
        return known[source]
    path = expanded(source)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in source:
        raise RecipeError(f"recipe file {source} not found; shipped recipes: {', '.join(known)}")
    hint = did_you_mean(source, known) or ";"
    raise RecipeError(f"no recipe named '{source}'{hint} shipped recipes: {', '.join(known)}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice; of the two the last would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a text says.

    Raises:
        ValueError: it is no YAML, has a key twice, is nested too deeply, or holds a number or a date that is none.
    """
    try:
        return _Loader(text).get_single_data()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError(f"{path} is larger than {LARGEST // 1024} kB, which no recipe is")
        return read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}") from None


def _section_of(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of a recipe; of `attention` those of every linear form."""
    keys: dict[str, None] = {}
    for name, info in model.model_fields.items():
        keys[prefix + name] = None
        section = _section_of(info.annotation)
        sections = [form.config for form in FORMS.values()] if section is AttentionConfig else [section]
        for each in sections:
            if each is not None:
                keys.update(dict.fromkeys(known_keys(each, f"{prefix}{name}.")))
    return list(keys)


def _refuse_unknown(model: type[BaseModel], values: dict[str, Any], where: str, prefix: str = "") -> None:
    for key, value in values.items():
        if key not in model.model_fields:
            hint = did_you_mean(f"{prefix}{key}", known_keys())
            raise RecipeError(f"{where}: unknown key '{prefix}{key}'{hint or '; see: castling recipes show castling'}")
        section = _section_of(model.model_fields[key].annotation)
        form = value.get("form", DEFAULT) if section is AttentionConfig and isinstance(value, dict) else None
        if isinstance(form, str) and form in FORMS:
            section = FORMS[form].config
        if section is not None and isinstance(value, dict):
            _refuse_unknown(section, value, where, f"{prefix}{key}.")


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise RecipeError(f"--set takes key=value, such as distill.steps=100, not '{override}'")
    if key not in known_keys():
        raise RecipeError(f"--set: unknown key '{key}'{did_you_mean(key, known_keys())}")
    try:
        value = read_yaml(text)
    except ValueError:
        raise RecipeError(f"--set {key}: '{text}' is not a YAML value") from None
    if key == "attention.form":  # which has keys of its own; it starts from its own defaults
        return {**values, "attention": {"form": value}}
    return _with(values, key.split("."), value)


def _with(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    head, *rest = path
    inner = values.get(head) or {}
    if rest and not isinstance(inner, dict):
        raise RecipeError(
            f"--set {head}: it is a section and can't be {inner}; set a key of it, {head}.{rest[0]}=VALUE"
        )
    return {**values, head: _with(inner, rest, value) if rest else value}
