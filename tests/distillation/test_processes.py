"""Two processes on the CPU (gloo) against one: they are started once, and do everything that is looked at here."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
import torch

import castling_convert as cc
from castling_convert.data.preprocessing import Preprocessing
from castling_convert.data.spec import open_data
from castling_convert.distillation import processes
from castling_convert.distillation.loop import distill
from castling_convert.distillation.progress import Progress
from castling_convert.distillation.state import weights_sha256
from castling_convert.errors import BundleError, DataError, ModelError, ProcessLost, RecipeError
from tests.conftest import tiny_vit

STEPS, BATCH, STOPPED = 20, 8, 5
SETTINGS = (
    f"distill.steps={STEPS}", f"distill.batch_size={BATCH}", "distill.align.share=0.5", "distill.optimizer.lr=0.3",
    "distill.mask.schedule=gate", "distill.mask.closed_from=0.5",
)  # fmt: skip
pytestmark = pytest.mark.xdist_group("processes")


class Seen(torch.utils.data.Dataset):
    """Digits that remember which of them were read."""

    def __init__(self, dataset) -> None:
        self.dataset, self.read = dataset, []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        self.read.append(index)
        return self.dataset[index]


class Stops(Progress):
    """Asks this process to stop after a step."""

    def step(self, *, step, **values):
        super().step(step=step, **values)
        if step == STOPPED:
            signal.raise_signal(signal.SIGTERM)


def models(random: bool = False):
    """A teacher and its student; with `random` one that draws random numbers when it trains."""
    torch.set_num_threads(1)
    teacher = tiny_vit()
    student = cc.castle(teacher, "castling")
    if random:
        student.blocks[0].drop_path1 = torch.nn.Dropout(0.1)
    return student, teacher


def run(student, teacher, folder: Path | None, *settings: str, data="digits", **options):
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    recipe = cc.Recipe.load("castling", [*SETTINGS, *settings])
    return distill(student, teacher, data, recipe, device="cpu", workdir=folder, **options)


def digits(teacher) -> tuple:
    config = cc.Recipe.load("castling", SETTINGS).data
    data = open_data("digits", Preprocessing.of(teacher), "train", training=config)
    seen = Seen(data.dataset)
    object.__setattr__(data, "dataset", seen)
    return data, seen.read


def error_of(work) -> str:
    try:
        work()
    except (cc.CastlingError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def one_of_two(number: int, folder: Path, port: int) -> None:
    """What each process does; what it finds goes to `folder/NUMBER.json`."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                   "MASTER_PORT": str(port)}  # fmt: skip
    found = {}

    student, teacher = models()
    data, found["read"] = digits(teacher)
    probed = []
    result = run(student, teacher, folder / "whole", data=data, probe=lambda _: probed.append(1) or {"agreement": 1.0})
    found |= {"whole": weights_sha256(student), "probed": len(probed), "images": result.losses["attention"]}

    student, teacher = models(random=True)
    run(student, teacher, None)
    found["random"] = weights_sha256(student)
    student, _ = models(random=True)
    stopping = Stops(folder / "stopped") if number == 1 else Progress(folder / "stopped")
    with contextlib.suppress(KeyboardInterrupt):
        run(student, teacher, folder / "stopped", progress=stopping)
        found["not stopped"] = True
    if number == 0:
        shutil.copytree(folder / "stopped", folder / "by one")
    torch.manual_seed(number + 100)
    student, _ = models(random=True)
    resumed = run(student, teacher, folder / "stopped", resume=True)
    found |= {"resumed": weights_sha256(student), "resumed at": resumed.first_step}

    student, teacher = models()
    if number == 1:  # whatever another has, they train what the first one has
        student.head.weight.data += 1
    run(student, teacher, None, data=[torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1))])
    found["batches"] = weights_sha256(student)

    student, teacher = models()
    half = torch.ones(BATCH, 3, 32, 32)
    half[BATCH // 2 :] = 1e38  # the second process's part
    found["errors"] = [
        error_of(lambda: run(student, teacher, None, "distill.batch_size=5")),
        error_of(lambda: run(student, teacher, None, data=[torch.ones(5, 3, 32, 32)])),
        error_of(lambda: distill(student, teacher, "digits", device="cpu:1")),
        error_of(lambda: run(student, teacher, None, data=[half])),
        error_of(lambda: run(student, teacher, folder / "nothing", resume=True)),
        error_of(lambda: processes.on_first(lambda: (folder / "nothing" / "there").read_text())),
    ]
    found["from the first"] = processes.on_first(lambda: number)
    torch.manual_seed(0)
    whole = torch.randn(6, 5, 3) + 100
    found["variance"] = (processes.variance(whole[3 * number : 3 * number + 3], (0, 1)) - whole.var((0, 1), correction=0)).abs().max().item()  # fmt: skip  # noqa: E501
    (folder / f"{number}.json").write_text(json.dumps(found))
    if number == 1:
        os._exit(0)  # without a word
    found["lost"] = error_of(lambda: processes.collected(1))
    (folder / f"{number}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(folder) -> list[dict]:
    """What each of them found."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(one_of_two, (folder, port), nprocs=2, start_method="spawn")
    return [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)]


@pytest.fixture(scope="module")
def one(folder, two) -> dict:
    """A single process with the same batches."""
    student, teacher = models()
    data, read = digits(teacher)
    run(student, teacher, folder / "one", data=data)
    return {"student": student, "read": read}


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_curve_is_that_of_one_process(folder, one, two):
    """Up to the order in which numbers are summed; what is left of the logits' divergence is itself near rounding."""
    alone, together = metrics(folder / "one"), metrics(folder / "whole")
    assert [record["step"] for record in together] == list(range(1, STEPS + 1))
    assert {record["phase"] for record in together} == {"align", "anneal", "closed"}
    for expected, found in zip(alone, together, strict=True):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3, abs=1e-6)
        assert found["losses"]["total"] == pytest.approx(expected["losses"]["total"], rel=1e-5)
        assert found["layer_losses"] == pytest.approx(expected["layer_losses"], rel=1e-5)
        assert found["density"] == pytest.approx(expected["density"], abs=1e-6)
        assert (found["lr"], found["threshold"], found["phase"]) == (
            expected["lr"],
            expected["threshold"],
            expected["phase"],
        )


def test_they_end_with_the_same_weights(two):
    assert two[0]["whole"] == two[1]["whole"]
    assert two[0]["random"] == two[1]["random"]
    assert two[0]["batches"] == two[1]["batches"]


def test_no_image_is_read_by_both(one, two):
    """Each reads half of every batch, and together exactly what one process reads."""
    parts = [found["read"] for found in two]
    assert len(parts[0]) == len(parts[1]) == len(one["read"]) // 2
    size = BATCH // 2
    halves = [[part[i : i + size] for i in range(0, len(part), size)] for part in parts]
    assert [index for pair in zip(*halves, strict=True) for half in pair for index in half] == one["read"]
    epoch = Counter(one["read"][: 10 * BATCH])
    assert set(epoch.values()) == {1}


def test_one_writes_and_probes(folder, two):
    assert [found["probed"] for found in two] == [STEPS, 0]
    assert sorted(path.name for path in (folder / "whole").iterdir()) == ["metrics.jsonl", "state"]


def test_all_stop_after_the_step_in_which_one_was_asked_to(folder, two):
    assert "not stopped" not in two[0] and "not stopped" not in two[1]
    assert json.loads((folder / "by one" / "state" / "run.json").read_text())["step"] == STOPPED
    assert [record["step"] for record in metrics(folder / "by one")] == list(range(1, STOPPED + 1))


def test_resumed_by_two_is_the_uninterrupted_run(folder, two):
    """Bit for bit, though each draws its own random numbers."""
    for found in two:
        assert found["resumed at"] == STOPPED
        assert found["resumed"] == found["random"]
    assert [record["step"] for record in metrics(folder / "stopped")] == list(range(1, STEPS + 1))


def test_resumed_by_one(folder, two):
    """What was begun by two goes on with the weights they had."""
    state = folder / "by one" / "state"
    assert sorted(path.name for path in state.glob("random_states_*")) == ["random_states_0.pkl", "random_states_1.pkl"]
    student, teacher = models(random=True)
    assert run(student, teacher, folder / "by one", resume=True).first_step == STOPPED
    alone, together = metrics(folder / "by one"), metrics(folder / "stopped")
    assert [record["step"] for record in alone] == list(range(1, STEPS + 1))
    assert alone[STOPPED]["losses"] == pytest.approx(together[STOPPED]["losses"], rel=1e-5)  # nothing is random here


def test_a_damaged_random_state_of_another_process_is_refused(folder, two):
    damaged = folder / "damaged"
    shutil.copytree(folder / "stopped", damaged)
    (damaged / "state" / "random_states_1.pkl").unlink()
    student, teacher = models(random=True)
    with pytest.raises(BundleError, match=r"random_states_1\.pkl is missing or damaged"):
        run(student, teacher, damaged, resume=True)


def test_both_meet_the_same_error(folder, two):
    """Whichever of them has made it."""
    assert two[0]["errors"] == two[1]["errors"]
    unequal, batch, device, infinite, nothing, read = two[0]["errors"]
    assert unequal.startswith(f"{RecipeError.__name__}: distill.batch_size=5 ")
    assert "--set distill.batch_size=4" in unequal
    assert batch.startswith(f"{DataError.__name__}: a batch of 5 images can't be shared out")
    assert device.startswith(f"{ModelError.__name__}: device cpu:1 is one, and each of 2 processes has its own")
    assert infinite.startswith(f"{ModelError.__name__}: the loss is nan at step 1")
    assert nothing.startswith(f"{BundleError.__name__}: nothing to resume")
    assert read.startswith("FileNotFoundError")


def test_one_that_is_gone_is_noticed(two):
    assert two[0]["lost"].startswith(f"{ProcessLost.__name__}: process 0 of 2 has lost another")


def test_what_is_said_of_the_whole_batch(two):
    assert [found["from the first"] for found in two] == [0, 0]
    assert max(found["variance"] for found in two) < 1e-5


def test_one_process_is_left_alone():
    part = torch.randn(4, 5, 3)
    assert processes.gathered(part) is part
    assert processes.part_of(part) is part
    assert processes.mean(part) is part
    assert torch.equal(processes.variance(part, (0, 1)), part.var((0, 1), correction=0))
    assert processes.collected(3) == [3]
    assert list(processes.any_of(True, False)) == [True, False]
    student = copy.deepcopy(torch.nn.Linear(2, 2))
    processes.same_weights(student)
    assert not torch.distributed.is_initialized()
