"""Files from anybody: whatever is in them, they work or are refused in one line, in bounded time and memory; nothing in
them is run, and nothing beside them is read. What is tried by hand is in the tests of each reader, see
`docs/security.md`; here is what chance makes of good files, the same at every run."""

from __future__ import annotations

import copy
import io
import json
import os
import resource
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

import castling_convert as cc
from castling_convert import bundle
from castling_convert.bundle.config import check_config
from castling_convert.data.folder import ImageFiles
from castling_convert.errors import LONGEST, CastlingError
from castling_convert.exporting import format_of
from castling_convert.files import sha256
from castling_convert.loading import load_model, read_state_dict
from castling_convert.recipe import Recipe, known_keys
from tests.models import closed_student, tiny

SECONDS, MEGABYTES = 10, 1500
"""Of one file: computed, and held at once beyond what was held before."""


def tries(count: int) -> Any:
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


class Watch:
    """What this process does that no file may make it do."""

    events = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
              "pickle.find_class", "ctypes.dlopen", "shutil.rmtree")  # fmt: skip

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in self.events:
            self.seen.append(f"{event} {arguments!r}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - Path itself must not be imported here
            if not path.startswith(self.allowed):
                self.seen.append(f"open {path}")


WATCH = Watch()
INSTALLED = (sys.prefix, sys.base_prefix, str(Path(cc.__file__).parent.parent), "/proc/", "/sys/", "/dev/", "/etc/ld")


def holds(folder: Path, action: Callable[[], Any]) -> None:
    """`action` works or is refused in one line, and reads nothing outside `folder`."""
    WATCH.allowed, WATCH.seen = (str(folder), *INSTALLED), []
    started, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        action()
    except CastlingError as refused:
        line = str(refused)
        assert line.isprintable()
        assert 0 < len(line) <= LONGEST
        assert refused.exit_code in (1, 2)
    finally:
        WATCH.allowed = None
    assert time.process_time() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024 < MEGABYTES
    assert WATCH.seen == []


def test_the_watch_sees(tmp_path: Path) -> None:
    """A test that could not fail would be none."""
    (tmp_path / "other").write_text("x")
    with pytest.raises(AssertionError):
        holds(tmp_path / "folder", (tmp_path / "other").read_text)
    with pytest.raises(AssertionError):
        holds(tmp_path, lambda: os.system("true"))
    with pytest.raises(AssertionError):
        holds(tmp_path, lambda: (_ for _ in ()).throw(CastlingError("")))


@st.composite
def damaged(draw: Any, good: bytes) -> bytes:
    """`good` with some bytes flipped, cut off, put in or taken out, most often near the beginning."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 6))):
        if not content:
            break
        place = draw(st.integers(0, min(len(content), draw(st.sampled_from([16, 64, 300, 10**9]))) - 1))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            content[place] = draw(st.integers(0, 255))
        elif kind == 1:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == 2:
            del content[place:]
        elif kind == 3:  # sizes: none, huge, negative
            content[place : place + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"]))
        elif kind == 4:
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            del content[place : place + draw(st.integers(1, 16))]
    return bytes(content)


# Recipes.

KEYS = st.one_of(st.text(max_size=6), st.integers(), st.none(), st.booleans(), st.dates(),
                 st.sampled_from([part for key in known_keys() for part in key.split(".")]))  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=12),
              st.binary(max_size=4), st.dates(), st.sampled_from(["all", "auto", "0-3", "angular", "gate", "none"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip
SHIPPED = [Recipe.load(name).model_dump(mode="json") for name in ("castling", "castling-fast", "reference")]
TOKENS = st.lists(
    st.sampled_from(["a: ", "&a ", "*a", "- ", "{", "}", "[", "]", "\n", "  ", "? ", ": ", "!!set ", "!!omap ", "<<: ",
                     "!!binary ", "!!python/object/apply:os.system ", "|", ">", '"', "'", "#", "---\n", "...", "\t",
                     "layers: ", "attention: ", "distill: ", "version: 2\n", "1e999", ".nan", "0x", "190:20:30",
                     "2001-99-99", "~", "\x00", "\u2028", "\x85", "\x1b[2J", "!", "@", "`"]),
    max_size=20,
).map("".join)  # fmt: skip


def places(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything in nested dicts and lists."""
    yield place
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield from places(values[key], (*place, key))


def put(values: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value there."""
    if not place:
        return value
    values = copy.copy(values)
    values[place[0]] = put(values[place[0]], place[1:], value)
    return values


@st.composite
def strange_recipes(draw: Any) -> Any:
    values = draw(st.sampled_from(SHIPPED))
    for _ in range(draw(st.integers(1, 2))):
        values = put(values, draw(st.sampled_from(list(places(values)))), draw(VALUES))
    return values


@tries(200)
@given(values=st.one_of(VALUES, strange_recipes(), strange_recipes()))
def test_recipes_of_any_values(values: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    holds(tmp_path_factory.getbasetemp(), lambda: Recipe.parse(values, "mine.yaml").to_yaml())


@tries(200)
@given(content=st.one_of(TOKENS.map(str.encode), st.binary(max_size=60)))
def test_recipe_files_of_any_content(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_bytes(content)
    holds(folder, lambda: Recipe.load(folder / "mine.yaml"))


@tries(100)
@given(key=st.sampled_from([*known_keys(), ""]), text=st.one_of(TOKENS, st.text(max_size=20)))
def test_settings_of_any_text(key: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    holds(tmp_path_factory.getbasetemp(), lambda: Recipe.load("castling", [f"{key}={text}"]))


LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
BY_HAND = {
    "a list in itself": "layers: &a [*a]",
    "a section in itself": "attention: &a {form: *a}",
    "itself": "&a {attention: *a}",
    "a billion laughs": LAUGHS + "layers: *a11",
    "a billion laughs for a name": LAUGHS.replace("a0: ", "name: ", 1).replace("a11: ", "description: "),
    "a very long number": "distill: {steps: " + "9" * 5000 + "}",
    "a very long number to the base of 60": "distill: {steps: 1" + ":59" * 3000 + "}",
    "very deep": "[" * 50_000,
    "very large": "name: " + "x" * 10**6,
    "a key of two lines": '"a\\nb": 1',
    "a key that steers the terminal": '"\\e]0;title\\a": 1',
    "a pattern that could take for ever": "layers: '" + "*a" * 200 + "b'",
    "half a letter": '"\\ud800": 1',
}


@pytest.mark.parametrize("text", BY_HAND.values(), ids=BY_HAND.keys())
def test_recipes_made_to_harm(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)

    def castled() -> None:
        cc.castle(tiny(), Recipe.load(tmp_path / "mine.yaml"))

    holds(tmp_path, castled)
    with pytest.raises(CastlingError, match=r"mine\.yaml|layers"):
        castled()


# Images.


def encoded(format: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
IMAGES = {
    "png": [encoded("PNG"), encoded("PNG", "P"), encoded("PNG", exif=ROTATED)],
    "jpg": [encoded("JPEG"), encoded("JPEG", "CMYK"), encoded("JPEG", exif=ROTATED)],
    "gif": [encoded("GIF")],
    "webp": [encoded("WEBP"), encoded("WEBP", lossless=True)],
    "tiff": [encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), encoded("TIFF", compression="jpeg")],
    "bmp": [encoded("BMP")],
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_are_whole_are_read(kind: str, tmp_path: Path) -> None:
    """Otherwise what follows would say nothing."""
    for index, content in enumerate(IMAGES[kind]):
        (tmp_path / f"{index}.{kind}").write_bytes(content)
        files = ImageFiles([(str(tmp_path / f"{index}.{kind}"), 0)], "RGB", lambda image: image.size, labelled=True)
        assert sorted(files[0][0]) == [20, 24]


@pytest.mark.parametrize("kind", IMAGES)
@tries(60)
@given(data=st.data())
def test_images_of_any_content(kind: str, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "images"
    folder.mkdir(exist_ok=True)
    path = folder / f"image.{kind}"
    path.write_bytes(data.draw(st.sampled_from(IMAGES[kind]).flatmap(damaged)))

    def read() -> None:
        files = ImageFiles([(str(path), 0)], "RGB", lambda image: torch.tensor(image.size), labelled=True)
        files.check_headers()
        assert len(files[0]) == 2

    holds(folder, read)


# Weights.


def weights() -> dict[str, bytes]:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    archive, legacy = io.BytesIO(), io.BytesIO()
    torch.save(state, archive)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    return {".safetensors": save(state), ".pth": archive.getvalue(), ".bin": legacy.getvalue()}


WEIGHTS = weights()


@pytest.mark.parametrize("suffix", WEIGHTS)
@tries(80)
@given(data=st.data())
def test_weights_of_any_content(suffix: str, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "weights"
    folder.mkdir(exist_ok=True)
    path = folder / f"model{suffix}"
    path.write_bytes(data.draw(damaged(WEIGHTS[suffix])))
    holds(folder, lambda: read_state_dict(path))


HEADERS: dict[str, Any] = {
    "more than there is": {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
    "a negative size": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    "very many axes": {"a": {"dtype": "F32", "shape": [1] * 5000, "data_offsets": [0, 4]}},
    "an unknown type": {"a": {"dtype": "F3", "shape": [8], "data_offsets": [0, 4]}},
    "backwards": {"a": {"dtype": "F32", "shape": [], "data_offsets": [4, 0]}},
    "no tensor": {"a": 5},
    "a list": [],
    "a head without classes": {"head.weight": {"dtype": "F32", "shape": [0, 192], "data_offsets": [0, 0]}},
    "a head that is a number": {"head.weight": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}},
    "a stem without channels": {
        "patch_embed.proj.weight": {"dtype": "F32", "shape": [0, 0, 16, 16], "data_offsets": [0, 0]}
    },
    "a name of two lines": {"a\nb\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_headers_made_to_harm(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    body = bytes(4) if "4]" in json.dumps(header) else b""
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)

    def loaded() -> None:
        load_model("vit_tiny_patch16_224", weights=tmp_path / "model.safetensors")

    holds(tmp_path, loaded)
    with pytest.raises(CastlingError, match=r"model\.safetensors"):
        loaded()


def test_an_archive_that_unpacks_to_a_thousand_times_its_size(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(10**7))
    with pytest.raises(CastlingError, match=r"is refused: it would unpack to 10 MB, as no weights do"):
        read_state_dict(tmp_path / "model.pth")


# Bundles.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.save(cc.fold(closed_student(tiny())), tmp_path_factory.mktemp("good") / "bundle")


STRANGE = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 3, 7, 16, 65_535, 2**31, 10**30, 0.5, 1e308, "", "x", "a\nb", "\x1b[2J", "all",
     "0,1", "0-9", "none", "angular", "landmarks", "features", "grid", "gain", [], [1], [32, 32], [0, 0], [3, 8, 8],
     [[1]], {}, {"a": 1}, "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "../x", "/etc/passwd", "relu",
     "rmsnorm", "avg", "map", "é" * 200]
)  # fmt: skip
ARGUMENTS = st.sampled_from(
    ["img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads", "mlp_ratio",
     "qkv_bias", "qk_norm", "init_values", "class_token", "reg_tokens", "dynamic_img_size", "patch_drop_rate",
     "weight_init", "embed_layer", "norm_layer", "block_fn", "features_only", "kernel_size", "window", "landmarks"]
)  # fmt: skip


@st.composite
def forged(draw: Any, config: dict[str, Any]) -> dict[str, Any]:
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.booleans()):
            config = put(config, draw(st.sampled_from([p for p in places(config) if p])), draw(STRANGE))
        else:
            sections = [("model_args",), ("model_args", "base_args"), ("castling", "attention"), ("pretrained_cfg",)]
            place = draw(st.sampled_from(sections))
            section: Any = config
            for key in place:
                section = section.get(key) if isinstance(section, dict) else None
            if isinstance(section, dict):
                config = put(config, place, {**section, draw(ARGUMENTS): draw(STRANGE)})
    return config


@tries(150)
@given(data=st.data())
def test_configs_of_any_values(good: Path, data: Any) -> None:
    config = data.draw(forged(json.loads((good / "config.json").read_text())))
    holds(good, lambda: check_config(config, good / "config.json"))


@tries(12)
@given(data=st.data())
def test_bundles_of_any_config(good: Path, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("forged")
    copied = Path(shutil.copytree(good, folder / "bundle"))
    config = data.draw(forged(json.loads((good / "config.json").read_text())))
    (copied / "config.json").write_text(json.dumps(config))
    signed(copied)
    holds(folder, lambda: cc.load(copied))


@tries(6)
@given(data=st.data())
def test_bundles_of_any_weights(good: Path, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("forged")
    copied = Path(shutil.copytree(good, folder / "bundle"))
    (copied / "model.safetensors").write_bytes(data.draw(damaged((good / "model.safetensors").read_bytes())))
    signed(copied)
    holds(folder, lambda: cc.load(copied))


def signed(path: Path) -> None:
    """Give a bundle the hashes that belong to its files."""
    summary = json.loads((path / "summary.json").read_text())
    summary["sha256"] |= {name: sha256(path / name) for name in ("config.json", "model.safetensors")}
    (path / "summary.json").write_text(json.dumps(summary))


# Artifacts.


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("openvino", reason="needs openvino, which [dev] has")
    folder, model = tmp_path_factory.mktemp("artifacts"), cc.fold(closed_student(tiny(depth=1)))
    return {
        suffix: cc.export(model, folder / f"model{suffix}", format=name)
        for name, suffix in (("onnx", ".onnx"), ("torch", ".pt2"), ("openvino", ".xml"))
    }


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_artifacts_that_are_whole_are_opened(suffix: str, artifacts: dict[str, Path]) -> None:
    path = artifacts[suffix]
    runs = []
    holds(path.parent, lambda: runs.append(format_of(path).exporter.open_artifact(path)))
    assert runs[0].intact


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
@tries(25)
@given(data=st.data())
def test_artifacts_of_any_content(
    suffix: str, data: Any, artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    shutil.copy(artifacts[".xml"].with_suffix(".bin"), folder / "model.bin")
    path = folder / f"model{suffix}"
    path.write_bytes(data.draw(damaged(artifacts[suffix].read_bytes())))
    holds(folder, lambda: format_of(path).exporter.open_artifact(path))


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "inner/../../secret", "link"])
def test_a_network_that_names_other_files(tmp_path: Path, artifacts: dict[str, Path], place: str) -> None:
    """ONNX may keep weights in files of their own; ours do not, and what names one is not followed."""
    (tmp_path / "secret").write_bytes(bytes(10**6))
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    proto = onnx.load(artifacts[".onnx"])
    tensor = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(CastlingError) as refused:
        format_of(folder / "model.onnx").exporter.open_artifact(folder / "model.onnx")
    assert str(refused.value).isprintable()


def test_entities_of_xml_are_not_followed(tmp_path: Path, artifacts: dict[str, Path]) -> None:
    (tmp_path / "secret").write_text("s3cret")
    text = artifacts[".xml"].read_text()
    head = f'<!DOCTYPE net [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
    start = text.index("<net ")
    (tmp_path / "model.xml").write_text(text[:start] + head + text[start:].replace('name="images"', 'name="&x;"', 1))
    shutil.copy(artifacts[".xml"].with_suffix(".bin"), tmp_path / "model.bin")

    def opened() -> None:
        runner = format_of(tmp_path / "model.xml").exporter.open_artifact(tmp_path / "model.xml")
        assert "s3cret" not in str(runner.__dict__)

    holds(tmp_path, opened)
