"""`--data` specs: what is read, how it is split, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from castling_convert.data.loaders import Resumable, eval_loader, some_images, training_loader
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.errors import DataError
from castling_convert.recipe import DataConfig

SIZE = (32, 32)
GRAY, COLOUR = 1, 3


def preprocessing(channels: int = COLOUR) -> Preprocessing:
    return Preprocessing((channels, *SIZE), (0.5,) * channels, (0.5,) * channels, "bicubic", 1.0, "center")


def fill(root, *names: str) -> None:
    """One plain grey image for each name, its grey the place in the list."""
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (index * 10,) * 3).save(root / name)


def opened(spec, split="train", channels: int = COLOUR, **options):
    return open_data(str(spec), preprocessing(channels), split, **options)


def greys(data) -> list[int]:
    """Which of `fill`'s images these are."""
    return [round(float(data.dataset[i][0].mean()) * 127.5 + 127.5) // 10 for i in range(len(data))]


def test_preprocessing_follows_the_model(vit):
    model = vit(img_size=(48, 64))
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), interpolation="bilinear", crop_pct=0.8)
    found = Preprocessing.of(model)
    assert found.input_size == (3, 48, 64)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert (found.interpolation, found.crop_pct) == ("bilinear", 0.8)
    assert found.eval_transform()(Image.new("RGB", (100, 80))).shape == (3, 48, 64)


def test_a_grayscale_model_gets_grey_images(vit, tmp_path):
    found = Preprocessing.of(vit(in_chans=1))
    assert found.input_size[0] == len(found.mean) == len(found.std) == 1
    fill(tmp_path, "a/0.png", "b/1.png")
    for spec in ("digits", "generated", str(tmp_path)):
        assert open_data(spec, found, "train").dataset[0][0].shape == (1, 32, 32)


def test_a_comparison_on_generated_images_ends(vit):
    found = Preprocessing.of(vit())
    assert [len(open_data("generated", found, part)) for part in ("train", "validation")] == [100_000, 1_000]


def test_a_model_of_five_channels_has_no_images(vit):
    with pytest.raises(DataError, match="takes 5"):
        Preprocessing.of(vit(in_chans=5))


def test_digits_are_split_in_two_disjoint_stratified_parts():
    train, held_out = opened("digits"), opened("digits", "validation")
    assert (len(train), len(held_out), train.classes) == (1200, 597, 10)
    share = np.bincount(train.dataset.labels) / 1200
    np.testing.assert_allclose(np.bincount(held_out.dataset.labels) / 597, share, atol=0.003)
    seen = {(image.tobytes(), label) for image, label in zip(train.dataset.images, train.dataset.labels, strict=True)}
    others = zip(held_out.dataset.images, held_out.dataset.labels, strict=True)
    assert not any((image.tobytes(), label) in seen for image, label in others)


def test_digits_are_the_same_every_time():
    first, second = opened("digits"), opened("digits")
    assert first.dataset.labels == second.dataset.labels
    assert torch.equal(first.dataset[7][0], second.dataset[7][0])


def test_generated_images_depend_on_seed_and_index_alone():
    first, again, other = opened("generated", seed=3), opened("generated", seed=3), opened("generated", seed=4)
    assert first.classes is None
    assert torch.equal(first.dataset[5][0], again.dataset[5][0])
    assert not torch.equal(first.dataset[5][0], first.dataset[6][0])
    assert not torch.equal(first.dataset[5][0], other.dataset[5][0])
    assert first.dataset[5][0].std() > 0.1


def test_class_folders_give_labels(tmp_path):
    fill(tmp_path, "ant/0.png", "ant/1.jpg", "bee/2.jpeg", "cat/3.png")
    data = opened(tmp_path)
    assert data.classes == 3
    assert [data.dataset[i][1] for i in range(4)] == [0, 0, 1, 2]
    assert greys(data) == [0, 1, 2, 3]


def test_a_flat_folder_has_no_labels(tmp_path):
    fill(tmp_path, "0.png", "1.png")
    data = opened(tmp_path)
    assert data.classes is None
    assert [data.dataset[i][1] for i in range(2)] == [-1, -1]


def test_loose_images_beside_class_folders_take_the_labels_away(tmp_path):
    fill(tmp_path, "ant/0.png", "bee/1.png", "2.png")
    assert opened(tmp_path).classes is None


@pytest.mark.parametrize("names", [("train", "val"), ("training", "validation"), ("train", "test")])
def test_train_and_validation_subfolders(tmp_path, names):
    fill(tmp_path, f"{names[0]}/a/0.png", f"{names[0]}/b/1.png", f"{names[1]}/a/2.png")
    assert greys(opened(tmp_path, "train")) == [0, 1]
    assert greys(opened(tmp_path, "validation")) == [2]


def test_a_folder_without_parts_is_used_whole(tmp_path):
    fill(tmp_path, "a/0.png", "b/1.png")
    assert greys(opened(tmp_path, "train")) == greys(opened(tmp_path, "validation")) == [0, 1]


def test_torchvision_folder_by_a_timm_spec(tmp_path):
    fill(tmp_path, "a/0.png", "b/1.png")
    data = opened(f"torch/image_folder:{tmp_path}")
    assert data.classes == 2
    assert greys(data) == [0, 1]
    assert data.dataset[1][1] == 1


def test_torchvision_folder_whose_validation_part_is_a_test(tmp_path):
    fill(tmp_path, "train/a/0.png", "train/b/1.png", "test/a/2.png", "test/b/3.png", "test/b/4.png")
    data = opened(f"torch/image_folder:{tmp_path}", "validation")
    assert (data.classes, data.held_out) == (2, True)
    assert greys(data) == [2, 3, 4]


def test_classes_and_broken_images_of_a_hub_data_set(tmp_path):
    """Hugging Face's datasets, through timm: of a folder, with the classes that it names."""
    pytest.importorskip("datasets", reason="hfds/ data sets need: pip install datasets")
    fill(tmp_path, *(f"set/{part}/{kind}/{part}.png" for part in ("train", "validation") for kind in "abc"))
    data = opened(f"hfds/{tmp_path / 'set'}:{tmp_path / 'cache'}", "validation")
    assert (data.classes, data.held_out) == (3, True)
    assert [data.dataset[index][1] for index in range(3)] == [0, 1, 2]
    assert greys(data) == [3, 4, 5]
    (tmp_path / "set/validation/b/validation.png").write_bytes(b"nothing of an image")
    broken = opened(f"hfds/{tmp_path / 'set'}:{tmp_path / 'other cache'}", "validation")
    with pytest.raises(DataError, match=r"sample 1 of hfds/.* can't be read .*; remove it"):
        assert broken.dataset[1] is None  # and not the third one
    fill(tmp_path, "flat/0.png")
    unlabelled = opened(f"hfds/{tmp_path / 'flat'}:{tmp_path / 'third cache'}")
    with pytest.raises(DataError, match=r"sample 0 of hfds/.* has no field 'label'; give its images as a folder"):
        assert unlabelled.dataset[0] is None


def test_torchvision_folder_for_a_grayscale_model(tmp_path):
    fill(tmp_path, "a/0.png", "b/1.png")
    assert opened(f"torch/image_folder:{tmp_path}", channels=GRAY).dataset[0][0].shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("torch/nothing:/tmp", "torch/nothing"),
        ("torch/image_folder:/nowhere", "torch/image_folder"),
        ("/nowhere", "/nowhere not found"),
        ("digit", "digit not found"),
    ],
)
def test_what_can_not_be_opened(spec, words):
    with pytest.raises(DataError, match=words):
        opened(spec)


def test_an_empty_folder(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"no images in .*train"):
        opened(tmp_path)


def test_a_file_that_is_no_image_is_found_at_once(tmp_path):
    fill(tmp_path, "a/0.png")
    (tmp_path / "a" / "1.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"a/1\.jpg is no image; remove it"):
        opened(tmp_path)


def test_a_truncated_image_is_named_when_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.jpg")
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "0.jpg").write_bytes(whole[: len(whole) // 2])
    data = opened(tmp_path)
    with pytest.raises(DataError, match=r"0\.jpg can't be read \(.*truncated"):
        data.dataset[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_other_modes(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (40, 40)).save(tmp_path / f"0.{suffix}")
    assert opened(tmp_path).dataset[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "PNG"])
def test_formats(tmp_path, suffix):
    fill(tmp_path, f"a/0.{suffix}", f"b/1.{suffix}")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    assert greys(opened(tmp_path)) == [0, 1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_a_file_of_each_format_that_is_none(tmp_path):
    """Whatever PIL makes of it, it is one line."""
    for suffix, start in (("webp", b"RIFF\0\0\0\0WEBPVP8 "), ("bmp", b"BM"), ("tiff", b"II*\0"), ("gif", b"GIF89a")):
        folder = tmp_path / suffix
        fill(folder, f"0.{suffix}")
        whole = (folder / f"0.{suffix}").read_bytes()
        for index, content in enumerate((b"", start, start + b"\xff" * 100, whole[: len(whole) // 2], whole[:20])):
            (folder / f"0.{suffix}").write_bytes(content)
            with pytest.raises(DataError, match=rf"{suffix}/0\.{suffix} (is no image|can't be read \(.*\)); remove it"):
                assert opened(folder).dataset[0] is None, index


def ramp() -> np.ndarray:
    """[32, 32] from 0 to 255, from left to right."""
    return np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))


def test_an_image_of_too_many_pixels(tmp_path, recwarn):
    """A file of a few kilobytes that says it is 400 MB; PIL itself only warns of it."""
    Image.new("1", (12_000, 12_000)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"large\.png can't be read \(12000x12000 are more than 134,217,728 pixels"):
        opened(tmp_path)
    assert len(recwarn) == 0


def test_a_format_that_starts_a_program(tmp_path):
    """PIL hands PostScript to Ghostscript, whatever the file is called."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png", "EPS")
    with Image.open(tmp_path / "image.png") as image:
        assert image.format == "EPS"
    with pytest.raises(DataError, match=r"image\.png is no image"):
        opened(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [GRAY, COLOUR])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, suffix, channels):
    Image.fromarray(ramp().astype(np.uint16) * 257).save(tmp_path / f"0.{suffix}")
    with Image.open(tmp_path / f"0.{suffix}") as image:
        assert image.mode.startswith("I")
    found = opened(tmp_path, channels=channels).dataset[0][0]
    expected = torch.from_numpy(ramp()).float() / 127.5 - 1
    torch.testing.assert_close(found, expected.expand(channels, 32, 32), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_have_no_white(tmp_path, kind):
    Image.fromarray((ramp().astype(np.float64) * 2**22).astype(kind)).save(tmp_path / "0.tiff")
    with pytest.raises(DataError, match=r"0\.tiff can't be read \(32 bits a pixel.*\); remove it"):
        assert opened(tmp_path).dataset[0] is None


def test_thirty_two_bits_that_are_no_more_than_sixteen(tmp_path):
    Image.fromarray(ramp().astype(np.int32)).save(tmp_path / "0.tiff")
    with pytest.raises(DataError, match="32 bits a pixel"):
        assert opened(tmp_path).dataset[0] is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_they_say(tmp_path, orientation):
    """A camera that was held upright saves what its sensor saw, and how it was held."""
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's, from what is meant to be seen to what is saved
    meant = Image.fromarray(np.stack([ramp(), ramp().T, 0 * ramp()], -1))
    saved = meant if orientation == 1 else meant.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved.save(tmp_path / "0.png", exif=exif)
    found = opened(tmp_path).dataset[0][0]
    expected = torch.from_numpy(np.asarray(meant).copy()).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_link_to_a_folder_above_multiplies_nothing(tmp_path):
    fill(tmp_path, "a/0.png", "b/1.png", "elsewhere/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to(".")
    assert greys(opened(tmp_path)) == [0, 1, 2]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    fill(tmp_path, "data/a/0.png", "elsewhere/1.png")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    data = opened(tmp_path / "data")
    assert (greys(data), data.classes) == ([0, 1], 2)


def test_the_order_and_the_classes_are_those_of_timms_reader(tmp_path):
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    fill(tmp_path, *(f"{name}/{number}.png" for name in ("b10", "B9", "a/deep", "c") for number in (10, 9, 1)))
    timms, ours = ReaderImageFolder(str(tmp_path)), opened(tmp_path)
    assert ours.dataset.samples == timms.samples
    assert ours.classes == len(timms.class_to_idx)


def test_training_augments_and_evaluation_does_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    plain = opened(tmp_path).dataset
    augmented = opened(tmp_path, training=DataConfig()).dataset
    assert torch.equal(plain[0][0], plain[0][0])
    assert not torch.equal(augmented[0][0], augmented[0][0])


def test_digits_are_never_mirrored(monkeypatch):
    seen = []
    monkeypatch.setattr("timm.data.create_transform", lambda *_args, **options: seen.append(options["hflip"]))
    opened("digits", training=DataConfig(hflip=0.5))
    opened("generated", training=DataConfig(hflip=0.5))
    assert seen == [0.0, 0.5]


def test_resumable_draws_every_image_once_an_epoch_in_a_new_order():
    places = list(Resumable(size=10, samples=30, start=0, seed=0))
    assert [draw for draw, _ in places] == list(range(30))
    draws = [index for _, index in places]
    epochs = [draws[:10], draws[10:20], draws[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert places != list(Resumable(10, 30, 0, seed=1))


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 29, 30])
def test_resumable_goes_on_exactly(start):
    whole = list(Resumable(size=10, samples=30, start=0, seed=5))
    rest = Resumable(size=10, samples=30, start=start, seed=5)
    assert list(rest) == whole[start:]
    assert len(rest) == 30 - start


def test_training_loader_gives_exactly_the_steps_left(tmp_path):
    """Also when the folder has fewer images than a batch."""
    fill(tmp_path, "0.png", "1.png", "2.png")
    data = opened(tmp_path)
    whole = [images for images, _ in training_loader(data, 4, 5, start=0, seed=0, workers=0)]
    rest = [images for images, _ in training_loader(data, 4, 5, start=2, seed=0, workers=0)]
    assert [images.shape[0] for images in whole] == [4] * 5
    assert len(rest) == 3
    assert all(torch.equal(left, right) for left, right in zip(whole[2:], rest, strict=True))


def test_augmentations_depend_on_the_draw_alone(tmp_path):
    """And not on who reads it, on the random state, or on what was read before."""
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "0.png")
    data = opened(tmp_path, training=DataConfig())

    def images(start: int, workers: int, seed: int = 0) -> list[torch.Tensor]:
        torch.manual_seed(start + workers)
        random.seed(start + workers)
        return [images for images, _ in training_loader(data, 2, 6, start, seed, workers)]

    whole = images(0, workers=0)
    assert len({batch[0].sum().item() for batch in whole}) == 6  # one image, a crop of its own every time
    for workers, start in ((2, 0), (0, 3), (2, 3)):
        assert all(torch.equal(*pair) for pair in zip(images(start, workers), whole[start:], strict=True))
    assert not torch.equal(images(0, workers=0, seed=1)[0], whole[0])


def test_starting_a_loader_leaves_the_random_state_alone(tmp_path):
    fill(tmp_path, "0.png")
    before = torch.random.get_rng_state()
    next(iter(training_loader(opened(tmp_path), 1, 1, start=0, seed=0, workers=0)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_eval_loader_gives_everything_in_order(tmp_path):
    fill(tmp_path, *(f"{index}.png" for index in range(5)))
    batches = list(eval_loader(opened(tmp_path), batch_size=2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]


def test_some_images_are_spread_evenly(tmp_path):
    fill(tmp_path, *(f"{index}.png" for index in range(9)))
    data = opened(tmp_path)
    chosen = some_images(data, 3)
    expected = torch.stack([data.dataset[index][0] for index in (0, 4, 8)])
    assert torch.equal(chosen, expected)
    assert len(some_images(data, 100)) == 9
