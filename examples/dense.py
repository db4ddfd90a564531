"""What `segmentation.py` and `detection.py` do: train a teacher, castle its backbone, export, draw what both say."""

import argparse
from pathlib import Path

import timm
import torch
from PIL import Image
from rich.console import Console
from timm.models import save_for_hf

import castling_convert as cc
from castling_convert.analysis.report import write_report
from castling_convert.analysis.samples import in_a_row
from castling_convert.data.loaders import some_batches
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.demo.heads import train_head, train_whole
from castling_convert.loading import load_model
from castling_convert.tasks import task_of

SMALL = {"img_size": 96, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
SHOWN = 8


def teacher_of(kind, labels, small, options, console):
    """Of a kind, with softmax attention, trained; and the data that it is for."""
    if options.data is None:
        teacher = timm.create_model(kind, num_classes=small, **SMALL)
        train_whole(teacher, "scenes", steps=options.teacher_steps, console=console)
        return teacher, "scenes"
    inside = load_model(options.backbone, weights=options.weights, image_size=(options.image_size,) * 2)
    inside.reset_classifier(0)
    name = inside.pretrained_cfg["architecture"]
    like = Preprocessing((3, 96, 96), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash", labels=labels)
    classes = open_data(options.data, like, "validation").classes
    teacher = timm.create_model(kind, backbone=name, num_classes=classes, img_size=options.image_size)
    found = teacher.backbone.model.load_state_dict(inside.state_dict(), strict=False)  # its head is not wanted
    assert not found.missing_keys, found.missing_keys
    train_head(teacher, options.data, console=console)
    return teacher, options.data


def main(kind, labels, small, about, **export):
    """Of a `kind` of timm's with such `labels`, `small` classes where scenes are made here; `export` is how."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of scenes; some are made here when left out")
    parser.add_argument("--backbone", default="dinov2_s", help="a timm name, with --data [default: dinov2_s]")
    parser.add_argument("--weights", help="a file of the backbone's weights, in place of a download")
    parser.add_argument("--image-size", type=int, default=280, help="with --data [default: 280]")
    parser.add_argument("--steps", type=int, default=300, help="of distillation [default: 300]")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--teacher-steps", type=int, default=800, help="of the small teacher [default: 800]")
    parser.add_argument("--output", type=Path, default=Path("castled", kind))
    options = parser.parse_args()
    console = Console(stderr=True)

    teacher, data = teacher_of(kind, labels, small, options, console)
    recipe = cc.Recipe.load("castling", [f"distill.steps={options.steps}", f"distill.batch_size={options.batch_size}"])
    kept = options.output.with_name(options.output.name + "-teacher")
    save_for_hf(teacher, kept, safe_serialization=True)
    # The same on the command line: castling convert --model local-dir:KEPT --data DATA
    summary = cc.convert(f"local-dir:{kept}", options.output, data=data, recipe=recipe, force=True, console=console)
    for name in ("teacher", "castled"):
        print(name, {key: round(value, 2) for key, value in summary["accuracy"][name].items() if value is not None})
    artifact = cc.export(options.output, format="onnx", **export)
    print(f"{artifact}: {artifact.stat().st_size / 1e6:.1f} MB")

    task, castled, preprocessing = task_of(teacher), cc.load(options.output), Preprocessing.of(teacher)
    images, labelled = some_batches(open_data(data, preprocessing, "validation"), SHOWN)[0]
    with torch.no_grad():
        outputs = zip(teacher(images), castled(images), strict=True)
    rows = [in_a_row(task, *parts, preprocessing) for parts in zip(images, labelled, outputs, strict=True)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + 4 for row in rows)), "white")
    for place, row in enumerate(rows):
        sheet.paste(row, (0, place * (row.height + 4)))
    sheet.save(options.output / "scenes.png")
    print(f"{options.output / 'scenes.png'}: labels, teacher, castled")
    print(write_report(options.output, latency=False, console=console))
