"""The distillation loop on a tiny ViT."""

from __future__ import annotations

import contextlib
import copy
import json
import signal

import pytest
import torch
from safetensors.torch import load_file

import castling_convert as cc
from castling_convert.castling import castled_layers, close_masks
from castling_convert.distillation.loop import distill
from castling_convert.distillation.optimizers import align_optimizer, whole_optimizer
from castling_convert.distillation.progress import Progress
from castling_convert.errors import BundleError, DataError, ModelError, RecipeError, WeightsError
from castling_convert.folding import certify

WHOLE = ("distill.align.share=0", "distill.optimizer.guard=false")
"""The second phase alone, at the rate that is given."""


def recipe(*overrides: str, steps: int = 10):
    return cc.Recipe.load("castling", [f"distill.steps={steps}", "distill.batch_size=4", *WHOLE, *overrides])


def run(student, teacher, data, *overrides, steps=10, **options):
    return distill(student, teacher, data, recipe(*overrides, steps=steps), device="cpu", **options)


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Steps(Progress):
    """Calls back after every step."""

    def __init__(self, callback) -> None:
        super().__init__()
        self.callback = callback

    def step(self, *, step, phase, images, **values):
        self.callback(step)


PHASES = (
    "distill.align.share=0.1",
    "distill.mask.schedule=threshold",
    "distill.mask.open_until=0.1",
    "distill.mask.closed_from=0.6",
    "distill.mask.start=0.1",
)


def test_masks_rise_after_the_alignment_and_end_exactly_closed(student, teacher, batches, tmp_path):
    run(student, teacher, batches, *PHASES, steps=20, workdir=tmp_path)
    records = metrics(tmp_path)
    assert [record["phase"] for record in records] == ["align"] * 2 + ["anneal"] * 11 + ["closed"] * 7
    opened = [record["threshold"] for record in records[2:]]
    assert opened == sorted(opened)
    assert opened[0] < 1 / 17  # at the opening nothing is below the uniform weight
    for record in records:
        assert set(record["density"]) == {"blocks.0.attn", "blocks.1.attn"}
        if record["phase"] != "anneal":
            assert record["threshold"] == 1.0
            assert set(record["density"].values()) == {0.0}
    assert records[2]["density"]["blocks.0.attn"] > 0.9
    assert all(layer.closed for _, layer in castled_layers(student))
    assert not student.training
    cc.fold(student)


def test_a_closed_layer_does_not_pay_for_softmax(student, teacher, batches, monkeypatch):
    import castling_convert.attention.castled as castled

    calls = []
    whole = castled.masked_softmax
    monkeypatch.setattr(castled, "masked_softmax", lambda *values: calls.append(1) or whole(*values))
    run(student, teacher, batches, *PHASES, steps=20)
    assert len(calls) == 9 * 2  # eleven steps, of which two are wholly open, and two layers
    student(batches[0])
    assert len(calls) == 9 * 2


def test_the_teacher_is_not_changed(student, teacher, batches):
    before = state(teacher)
    run(student, teacher, batches)
    assert same(state(teacher), before)
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    for model in (teacher, student):
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_no_hook_is_left_after_an_error(student, teacher, batches):
    with pytest.raises(DataError, match=r"takes images \[B, 3, 32, 32\], not \[4, 3, 5, 5\]"):
        run(student, teacher, [*batches, torch.zeros(4, 3, 5, 5)])
    for model in (teacher, student):
        assert not any(module._forward_hooks for module in model.modules())


def test_labels_are_never_used(student, teacher, batches):
    """Plain tensors, tensors with labels and tensors with nonsense for labels train the same weights."""
    trained = []
    labelled = [(images, torch.zeros(4, dtype=torch.long)) for images in batches]
    nonsense = [[images, "cat", float("nan")] for images in batches]
    for data in (batches, labelled, nonsense):
        copied = copy.deepcopy(student)
        run(copied, teacher, data)
        trained.append(state(copied))
    assert not same(trained[0], state(student))
    assert same(trained[0], trained[1])
    assert same(trained[0], trained[2])


def test_losses_fall(student, teacher, batches, tmp_path):
    overrides = ("distill.optimizer.lr=3e-3",)
    run(student, teacher, batches, *overrides, steps=40, workdir=tmp_path)
    records = metrics(tmp_path)
    for name in ("total", "attention", "logits"):
        first, last = (sum(record["losses"][name] for record in part) for part in (records[:6], records[-6:]))
        assert last < 0.6 * first, name


def test_aligning_alone_brings_the_layers_closer(teacher, batches, tmp_path):
    for block in teacher.blocks:
        block.attn.qkv.weight.data[:64] *= 12  # sharper attention than random weights have
    student = cc.castle(teacher, "castling")
    run(student, teacher, batches, "distill.align.share=0.9", steps=40, workdir=tmp_path)
    aligned = [record for record in metrics(tmp_path) if record["phase"] == "align"]
    assert len(aligned) == 36
    assert set(aligned[0]["losses"]) == {"total", "attention"}
    assert aligned[-1]["losses"]["attention"] < 0.8 * aligned[0]["losses"]["attention"]


def test_what_metrics_hold(student, teacher, batches, tmp_path):
    result = run(student, teacher, batches, steps=4, workdir=tmp_path)
    records = metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    last = records[-1]
    assert set(last["losses"]) == {"total", "attention", "logits", "features"}
    assert set(last["layer_losses"]) == set(last["density"]) == {"blocks.0.attn", "blocks.1.attn"}
    parts = [last["losses"][name] for name in ("attention", "logits", "features")]
    assert last["losses"]["total"] == pytest.approx(sum(parts))
    mean = sum(last["layer_losses"].values()) / 2
    assert last["losses"]["attention"] == pytest.approx(mean)
    assert last["images_per_second"] > 0
    assert last["lr"] > 0  # of this step; after it there is none
    assert result.steps == 4
    assert result.losses == {name: value for name, value in last["losses"].items() if name != "total"}


def test_the_weights_of_the_losses(student, teacher, batches, tmp_path):
    overrides = ("distill.loss.features=2", "distill.loss.attention=0", "distill.loss.logits=3")
    run(student, teacher, batches, *overrides, steps=4, workdir=tmp_path)
    losses = metrics(tmp_path)[-1]["losses"]
    assert set(losses) == {"total", "logits", "features"}
    assert losses["features"] > 0
    assert losses["total"] == pytest.approx(2 * losses["features"] + 3 * losses["logits"])


def test_attention_alone_can_be_trained(student, teacher, batches):
    before = state(student)
    run(student, teacher, batches, "distill.optimizer.train=attention")
    changed = {name for name, tensor in state(student).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".attn." in name for name in changed), changed
    assert "blocks.0.attn.qkv.weight" in changed


MUON = ("distill.optimizer.name=muon", "distill.optimizer.weight_decay=0.01")


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(student):
    optimizer = whole_optimizer(student, recipe(*MUON).distill)
    taken = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups = {name: taken[id(p)] for name, p in student.named_parameters()}
    muon = {name for name, group in groups.items() if not group.get("use_fallback")}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert muon == {f"blocks.{block}.{layer}.weight" for block in range(2) for layer in layers}
    plain = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert plain == {
        name
        for name, p in student.named_parameters()
        if p.ndim == 1 or name.endswith(("gain", "bias", "token", "pos_embed"))
    }


def test_the_rates_of_muon_and_of_its_fallback(student, teacher, batches):
    """Keller Jordan's rule: an orthogonal update, so no direction of a square matrix moves by more than about `lr`."""
    before = state(student)
    settings = ("distill.optimizer.warmup=0", "distill.optimizer.decay=cosine", "distill.optimizer.name=muon")
    run(student, teacher, batches, *settings, "distill.optimizer.fallback=0.1", steps=1)
    moved = {name: tensor - before[name] for name, tensor in state(student).items()}
    step = torch.linalg.svdvals(moved["blocks.0.attn.proj.weight"])
    assert step.max().item() == pytest.approx(0.03, rel=0.3)  # Newton-Schulz is only nearly orthogonal
    assert moved["norm.bias"].abs().max().item() == pytest.approx(0.003, rel=0.1)  # Adam's first step


def added(student) -> set[str]:
    names = ("directions", "bias", "gain", "depthwise.weight")
    return {f"blocks.{block}.attn.{name}" for block in range(2) for name in names}


def times(student, optimizer, rate: float) -> dict[str, float]:
    """How many times a rate everything learns at."""
    taken = {id(p): group["lr"] / rate for group in optimizer.param_groups for p in group["params"]}
    return {name: taken[id(p)] for name, p in student.named_parameters() if id(p) in taken}


def test_what_castling_added_learns_faster(student):
    config = recipe("distill.optimizer.added=5").distill
    found = times(student, whole_optimizer(student, config), config.optimizer.lr)
    assert {name for name, factor in found.items() if factor == pytest.approx(5)} == added(student)
    assert {factor for name, factor in found.items() if name not in added(student)} == {1.0}
    assert "norm.weight" in found


@pytest.mark.parametrize(("size", "faster"), [(0.02, 1.0), (0.05, 2.0), (1.0, 4.0)])
def test_large_weights_and_small_heads_learn_faster_alone(student, teacher, size, faster):
    """Of two layers one has weights of this size, on average; heads have 16 dimensions, a quarter of 64."""
    with torch.no_grad():
        for block, rms in enumerate((size, 0.01)):
            for name in ("qkv", "proj"):
                weight = teacher.get_parameter(f"blocks.{block}.attn.{name}.weight")
                weight.copy_(rms * torch.sign(weight))
    config = recipe("distill.align.added=7").distill
    found = times(student, align_optimizer(student, teacher, config.align), config.align.lr)
    expected = {name: 7 * 2.0 if name in added(student) else faster if ".0." in name else 1.0 for name in found}
    assert found == pytest.approx(expected)
    assert {name for name, _ in student.named_parameters() if ".attn." in name} == set(found)


def test_what_layers_share_learns_once(student, teacher):
    with torch.no_grad():
        teacher.blocks[1].attn.proj.weight.mul_(0)
        teacher.blocks[1].attn.qkv.weight.mul_(0)
    student.blocks[1].attn.qkv = student.blocks[0].attn.qkv
    optimizer = align_optimizer(student, teacher, recipe().distill.align)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert id(student.blocks[0].attn.qkv.weight) in listed


def test_layers_alone_change_the_castled_layers_alone(student, teacher, batches):
    before = state(student)
    run(student, teacher, batches, "distill.align.share=1")
    changed = {name for name, tensor in state(student).items() if not torch.equal(tensor, before[name])}
    assert added(student) <= changed
    assert all(".attn." in name for name in changed), changed


def test_the_guard_lowers_a_rate_that_destroys_the_student(student, teacher, batches, tmp_path):
    """With the guard the run says so, goes back, and learns."""
    said = []

    class Said(Progress):
        def say(self, line):
            said.append(line)

    hot = ("distill.optimizer.lr=0.3", "distill.align.share=0.5")
    guarded = copy.deepcopy(student)
    run(guarded, teacher, batches, *hot, "distill.optimizer.guard=true", steps=40, progress=Said(tmp_path))
    assert said
    assert "got worse at a rate of 0.3; lowered to" in said[0]
    records = metrics(tmp_path)
    whole = [record["losses"]["total"] for record in records[20:]]
    assert whole[-1] < whole[0]
    assert max(record["lr"] for record in records[20:]) < 0.1
    (tmp_path / "free").mkdir()
    run(student, teacher, batches, *hot, steps=40, workdir=tmp_path / "free")
    free = [json.loads(line) for line in (tmp_path / "free/metrics.jsonl").read_text().splitlines()]
    assert max(record["losses"]["total"] for record in free[20:]) > 10 * max(whole)


def test_the_guard_leaves_a_rate_that_does_no_harm_and_every_step_as_it_would_be(student, teacher, batches, tmp_path):
    calm = ("distill.optimizer.lr=1e-5", "distill.align.share=0.5")
    plain, guarded = copy.deepcopy(student), copy.deepcopy(student)
    run(plain, teacher, batches, *calm, steps=40)
    run(guarded, teacher, batches, *calm, "distill.optimizer.guard=true", steps=40)
    assert same(state(plain), state(guarded))


def test_adamw_alone(student, teacher, batches):
    before = state(student)
    settings = ("distill.optimizer.lr=1e-3", "distill.optimizer.warmup=0")
    run(student, teacher, batches, *settings, "distill.optimizer.weight_decay=0", steps=1)
    moved = state(student)["blocks.0.attn.proj.weight"] - before["blocks.0.attn.proj.weight"]
    assert moved.abs().max().item() == pytest.approx(1e-3, rel=0.01)


def test_gates_and_orders_reach_the_layers(student, teacher, batches, tmp_path):
    closing = ("distill.mask.schedule=gate", "distill.mask.closed_from=0.8", "distill.mask.order=last")
    run(student, teacher, batches, *closing, steps=10, workdir=tmp_path)
    densities = [list(record["density"].values()) for record in metrics(tmp_path)]
    assert densities[0] == pytest.approx([1.0, 0.8])
    assert [first for first, _ in densities[:4]] == pytest.approx([1.0] * 4)
    assert [last for _, last in densities[4:]] == [0.0] * 6
    assert densities[-1] == [0.0, 0.0]


def test_a_gate_opens_to_the_teachers_own_layers(student, teacher, batches, tmp_path):
    """Whatever the layers have become alone, the first step of the whole student is nearly the teacher."""
    annealed = ("distill.align.share=0.5", *ANNEALED)
    for name in ("annealed", "closed"):
        (tmp_path / name).mkdir()
        run(copy.deepcopy(student), teacher, batches, *(annealed if name == "annealed" else annealed[:1]), steps=40,
            workdir=tmp_path / name)  # fmt: skip
    first = {name: metrics(tmp_path / name)[20] for name in ("annealed", "closed")}
    assert first["annealed"]["density"]["blocks.1.attn"] == 1
    assert first["annealed"]["losses"]["attention"] < 0.2 * first["closed"]["losses"]["attention"]
    last = metrics(tmp_path / "annealed")[-1]
    assert last["phase"] == "closed"
    assert set(last["density"].values()) == {0.0}


def test_the_probe_sees_a_closed_student_and_changes_nothing(student, teacher, batches, tmp_path):
    annealed = ("distill.mask.schedule=gate", "distill.mask.closed_from=0.9")
    seen = []

    def probe(model):
        seen.append((model.training, [layer.closed for _, layer in castled_layers(model)]))
        model(batches[0])
        return {"agreement": 12.5}

    plain, probed = copy.deepcopy(student), copy.deepcopy(student)
    run(plain, teacher, batches, *annealed, steps=40)
    run(probed, teacher, batches, *annealed, steps=40, workdir=tmp_path, probe=probe)
    assert same(state(plain), state(probed))
    assert seen == [(False, [True, True])] * 20
    records = metrics(tmp_path)
    assert [record["step"] for record in records if "probe" in record] == list(range(2, 41, 2))
    assert records[-1]["probe"] == {"agreement": 12.5}
    assert records[1]["density"]["blocks.0.attn"] > 0  # as it was in the step, not in the probe


@pytest.mark.parametrize(("steps", "times", "seen"), [(7, 3, [3, 6, 7]), (6, 3, [2, 4, 6]), (2, 5, [1, 2])])
def test_how_often_a_student_is_probed(student, teacher, batches, tmp_path, steps, times, seen):
    run(student, teacher, batches, steps=steps, workdir=tmp_path, probe=lambda _: {"spread": 0.0}, probes=times)
    assert [record["step"] for record in metrics(tmp_path) if "probe" in record] == seen


@pytest.mark.parametrize("times", [0, -1, 0.5, "often", True])
def test_a_number_of_probes_that_is_none(student, teacher, batches, times):
    with pytest.raises(RecipeError, match="as probes a whole number above zero, not"):
        run(student, teacher, batches, probe=lambda _: {}, probes=times)


def test_a_loader_that_runs_out_is_started_again(student, teacher, batches):
    assert run(student, teacher, batches[:1], steps=5).steps == 5


@pytest.mark.parametrize("data", [[], iter([])], ids=["list", "iterator"])
def test_an_empty_loader(student, teacher, data):
    with pytest.raises(DataError, match="no batch"):
        run(student, teacher, data)


def test_an_iterator_that_runs_out(student, teacher, batches):
    with pytest.raises(DataError, match="ran out"):
        run(student, teacher, iter(batches), steps=5)


def test_data_that_is_none(student, teacher):
    with pytest.raises(DataError, match="not 5"):
        run(student, teacher, 5)


def test_a_loss_that_is_not_finite_names_the_learning_rate(student, teacher, batches):
    with pytest.raises(
        ModelError,
        match=r"the loss is .* at step \d+: .* is not finite; lower the learning rate.*distill\.optimizer\.lr",
    ):
        run(student, teacher, batches, "distill.optimizer.lr=1e20", "distill.optimizer.clip_grad=1e20")


def test_the_rate_that_is_named_is_of_the_phase_that_did_the_harm(student, teacher, batches):
    settings = ("distill.align.share=0.5", "distill.align.lr=1e15", "distill.align.added=1")
    with pytest.raises(ModelError, match=r"at step 2: .*blocks\.0\.attn.* is not finite; .*distill\.align\.lr=3e\+14"):
        run(student, teacher, batches, *settings)


@pytest.mark.parametrize("share", [0, 1])
def test_weights_of_the_teacher_that_are_not_finite(teacher, student, batches, share):
    teacher.blocks[1].mlp.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(WeightsError, match=r"the teacher's blocks\.1\.mlp\.fc1\.weight .*not finite; .*--weights"):
        run(student, teacher, batches, f"distill.align.share={share}")


@pytest.mark.parametrize("share", [0, 1])
def test_a_teacher_that_makes_numbers_that_are_not_finite(teacher, student, batches, share):
    teacher.blocks[0].mlp.fc2.bias.data[0] = 3e38
    teacher.blocks[0].mlp.fc2.weight.data[0] = 3e38
    with pytest.raises(ModelError, match=r"at step 1: the teacher's blocks\.0\.\S+ is not finite") as caught:
        run(student, teacher, batches, f"distill.align.share={share}")
    assert "learning rate" not in str(caught.value)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_images_that_are_not_finite(student, teacher, batches, bad):
    batches[1][0, 0, 0, 0] = bad
    with pytest.raises(DataError, match="a batch of images holds numbers that are not finite"):
        run(student, teacher, batches)


def test_a_loss_weight_that_is_too_large(student, teacher, batches):
    with pytest.raises(RecipeError, match=r"at step 1: distill\.loss\.features is 1e\+300, too large for a loss of"):
        run(student, teacher, batches, "distill.loss.features=1e300")


def test_a_layer_that_is_not_finite_before_anything_was_learned(student, teacher, batches):
    student.blocks[1].attn.qkv.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"blocks\.1\.attn\.qkv\.weight is not finite, before anything was learned"):
        run(student, teacher, batches, "distill.align.share=1")


def test_a_checkpoint_never_holds_what_is_not_finite(student, teacher, batches, tmp_path):
    """The step that ends so is not saved, and the checkpoint before it is still there."""

    class Spoils(Progress):
        def step(self, **values):
            super().step(**values)
            if values["step"] == 6:
                student.norm.weight.data[0] = torch.inf

    settings = ("distill.align.share=0.5", "distill.checkpoint_every=1")
    with pytest.raises(
        ModelError, match=r"norm\.weight is not finite after step 6; lower the learning rate: .*optimizer\.lr=0.0003"
    ):
        run(student, teacher, batches, *settings, workdir=tmp_path, progress=Spoils(tmp_path))
    assert json.loads((tmp_path / "state" / "run.json").read_text())["step"] == 5
    saved = load_file(tmp_path / "state" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_the_guard_does_not_blame_the_rate_for_a_student_without_a_loss(student, teacher, batches):
    teacher.blocks[1].mlp.fc2.weight.data *= 1e38
    said = []

    class Said(Progress):
        def say(self, line):
            said.append(line)

    guarded = ("distill.align.share=0.5", "distill.optimizer.guard=true")
    with pytest.raises(ModelError, match=r"the teacher's \S+ is not finite"):
        run(student, teacher, batches, *guarded, progress=Said())
    assert said == []


def test_no_schedule_never_opens_the_branch(student, teacher, batches, tmp_path):
    run(student, teacher, batches, "distill.mask.schedule=none", workdir=tmp_path)
    assert all(record["density"] == {"blocks.0.attn": 0.0, "blocks.1.attn": 0.0} for record in metrics(tmp_path))


def test_a_student_that_is_not_castled(teacher, batches):
    with pytest.raises(ModelError, match=r"castle\(\)"):
        run(copy.deepcopy(teacher), teacher, batches)


def test_the_seed_decides(student, teacher):
    def trained(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed + 1)  # what was drawn before makes no difference
        copied = copy.deepcopy(student)
        run(copied, teacher, "digits", f"distill.seed={seed}", steps=3)
        return state(copied)

    first = trained(1)
    assert same(first, trained(1))
    assert not same(first, trained(2))


@pytest.mark.parametrize("how", ["to the end", "interrupted"])
def test_a_run_in_bf16_leaves_a_plain_float32_student(student, teacher, batches, how):
    """It trains autocast; what is probed on the way and folded in the end is not."""
    seen = []

    def probe(model):
        seen.append(model(batches[0]))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batches[0]).float()
        assert not torch.equal(seen[-1], rounded)
        assert torch.equal(seen[-1], copy.deepcopy(model)(batches[0]))
        return {}

    def press(step):
        if how == "interrupted" and step == 3:
            signal.raise_signal(signal.SIGINT)

    before, settings = state(student), ("distill.precision=bf16", "distill.align.share=0.5")
    with contextlib.nullcontext() if how == "to the end" else pytest.raises(KeyboardInterrupt):
        run(student, teacher, batches, *settings, steps=4, probe=probe, progress=Steps(press))
    assert len(seen) == (4 if how == "to the end" else 3)
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    assert not same(state(student), before)
    assert {"forward", "_original_forward"}.isdisjoint(student.__dict__)
    close_masks(student.eval())
    _, certificate = certify(student, batches[0])
    assert certificate.float32_logits < 1e-5


def test_precision_can_change_between_two_runs(student, teacher, batches):
    run(copy.deepcopy(student), teacher, batches, steps=2)
    run(student, teacher, batches, "distill.precision=bf16", steps=2)
    assert next(student.parameters()).dtype == torch.float32


GUARDED = ("distill.align.share=0.5", "distill.optimizer.guard=true", "distill.optimizer.lr=0.3")
ANNEALED = (
    "distill.mask.schedule=gate", "distill.mask.branch=teacher", "distill.mask.order=first",
    "distill.mask.closed_from=0.8",
)  # fmt: skip


@pytest.mark.parametrize(
    ("at", "settings"),
    [(1, ()), (3, ()), (7, ()), (3, GUARDED), (5, GUARDED), (8, GUARDED), (6, (*GUARDED, *ANNEALED))],
    ids=str,
)
def test_interrupted_and_resumed_is_the_uninterrupted_run(student, teacher, tmp_path, at, settings):
    student.blocks[0].drop_path1 = torch.nn.Dropout(0.1)  # random numbers are drawn in the model too
    whole, parts = copy.deepcopy(student), copy.deepcopy(student)
    run(whole, teacher, "digits", *settings)

    class Interrupted(Progress):
        def step(self, **values):
            super().step(**values)
            if values["step"] == at:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(parts, teacher, "digits", *settings, workdir=tmp_path, progress=Interrupted(tmp_path))
    assert all(layer.other is None for _, layer in castled_layers(parts))
    assert len(metrics(tmp_path)) == at
    torch.manual_seed(123)
    resumed = copy.deepcopy(student)
    result = run(resumed, teacher, "digits", *settings, workdir=tmp_path, resume=True)
    assert result.first_step == at
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, 11))
    assert same(state(resumed), state(whole))


def test_an_identity_is_what_is_read_again(student, teacher, tmp_path):
    mine = {"size": (2, 3)}
    run(copy.deepcopy(student), teacher, "digits", steps=2, workdir=tmp_path, identity=mine)
    assert run(student, teacher, "digits", steps=2, workdir=tmp_path, identity=mine, resume=True).first_step == 2
    with pytest.raises(RecipeError, match=r"identity= takes what JSON can hold: .*Path"):
        run(student, teacher, "digits", steps=2, workdir=tmp_path / "other", identity={"file": tmp_path})


def test_nothing_to_resume(student, teacher, batches, tmp_path):
    with pytest.raises(BundleError, match="nothing to resume"):
        run(student, teacher, batches, workdir=tmp_path, resume=True)


def test_nothing_is_written_without_a_folder(student, teacher, batches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(student, teacher, batches, "distill.checkpoint_every=1")
    assert list(tmp_path.iterdir()) == []
