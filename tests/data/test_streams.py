"""Streams of timm: another order for every pass of training, their own order else, and no resuming but exactly."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile

import pytest
import torch
from torch.utils.data import IterableDataset

import castling_convert as cc
from castling_convert.data.loaders import eval_loader, training_loader
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import ImageData, open_data
from castling_convert.distillation.progress import Progress
from castling_convert.errors import DataError, Interrupted

from ..models import images, recipe, tiny

IMAGES, SHARDS = 48, 4


@pytest.fixture
def shards(tmp_path):
    """A webdataset of grey images, each with its number as its class."""
    pytest.importorskip("webdataset", reason="wds/ data sets need: pip install webdataset")
    from PIL import Image

    names, each = [f"part-{shard}.tar" for shard in range(SHARDS)], IMAGES // SHARDS
    for shard, name in enumerate(names):
        with tarfile.open(tmp_path / name, "w") as tar:
            for number in range(each * shard, each * (shard + 1)):
                png = io.BytesIO()
                Image.new("RGB", (32, 32), (5 * number,) * 3).save(png, "png")
                for kind, content in (("png", png.getvalue()), ("cls", b"%d" % number)):
                    entry = tarfile.TarInfo(f"{number:04}.{kind}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    part = {"num_samples": IMAGES, "filenames": names, "shard_lengths": [each] * SHARDS}
    splits = {name: {"name": name, **part} for name in ("train", "validation")}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    return f"wds/numbers:{tmp_path}"


def numbers(spec: str, seed: int, passes: int = 1, training: bool = True) -> list[int]:
    """The classes of a stream's images in the order in which they come."""
    plain = recipe().data
    data = open_data(spec, Preprocessing.of(tiny()), "train", training=plain if training else None, seed=seed)
    loader = training_loader(data, 8, 100, 0, seed, workers=0) if training else eval_loader(data)
    return [int(label) for _ in range(passes) for _, labels in loader for label in labels]


def test_a_stream_is_shuffled_for_training_and_anew_for_every_pass(shards):
    first = numbers(shards, seed=0, passes=2)
    once, again = first[:IMAGES], first[IMAGES:]
    assert sorted(once) == sorted(again) == list(range(IMAGES))
    assert once != list(range(IMAGES))
    assert once != again
    assert first == numbers(shards, seed=0, passes=2)
    assert first != numbers(shards, seed=1, passes=2)


def test_a_stream_is_in_its_own_order_where_nothing_is_trained(shards):
    assert numbers(shards, seed=0, training=False) == list(range(IMAGES))


class Noise(IterableDataset):
    """A stream without end."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.randn(3, 32, 32, generator=generator), -1


STREAM = ImageData("wds/noise", Noise(), None, held_out=False)
RESUMED = (
    "wds/noise is streamed, and a run on a stream can't be resumed exactly; start over with --force, or give the "
    "images as a folder"
)


def test_a_run_on_a_stream_is_not_resumed(tmp_path):
    teacher = tiny()
    short = recipe().override("distill.batch_size=8", "distill.steps=4", "distill.checkpoint_every=2")
    student = cc.castle(teacher, short)
    cc.distill(student, teacher, STREAM, short, device="cpu", workdir=tmp_path, until=2)
    with pytest.raises(DataError) as refused:
        cc.distill(cc.castle(teacher, short), teacher, STREAM, short, device="cpu", workdir=tmp_path, resume=True)
    assert str(refused.value) == RESUMED


def test_a_run_on_a_stream_that_is_done_needs_no_more_of_it(tmp_path):
    teacher = tiny()
    short = recipe().override("distill.batch_size=8", "distill.steps=4")
    student, again = cc.castle(teacher, short), cc.castle(teacher, short)
    cc.distill(student, teacher, STREAM, short, device="cpu", workdir=tmp_path)
    cc.distill(again, teacher, STREAM, short, device="cpu", workdir=tmp_path, resume=True)
    torch.testing.assert_close(again(images()), student(images()), rtol=0, atol=0)


def test_convert_says_so_too(shards, tmp_path, monkeypatch):
    """When it is stopped, and when it is asked to go on; no word of --resume where it can't be done."""

    def step(progress, **values):
        os.kill(os.getpid(), signal.SIGINT)  # a Ctrl-C during the first step

    teacher, few = tiny(), recipe().override("distill.batch_size=8", "distill.steps=4")
    options = {"data": shards, "recipe": few, "device": "cpu"}
    with monkeypatch.context() as stopping, pytest.raises(Interrupted) as stopped:
        stopping.setattr(Progress, "step", step)
        cc.convert(teacher, tmp_path / "out", **options)
    assert stopped.value.exit_code == 130
    assert str(stopped.value) == (
        "interrupted after step 1 of 4; a run on a stream can't be resumed exactly: start over with --force"
    )
    with pytest.raises(DataError) as refused:
        cc.convert(teacher, tmp_path / "out", **options, resume=True)
    assert refused.value.exit_code == 2
    assert str(refused.value) == RESUMED.replace("wds/noise", shards)
    cc.convert(teacher, tmp_path / "out", **options, force=True)
