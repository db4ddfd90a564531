"""Whether a wrong formula would be noticed: the core mathematics is made wrong in one place at a time.

    python tests/mutations.py              all of them, about three quarters of an hour on two cores
    python tests/mutations.py entropy      those with that word in their name

Every flip is made in a temporary copy of the package, where the tests that answer for it run until the first one
fails; without a flip they have to pass. A flip that fails none has survived: it is listed at the end, and the exit code
is 1. Run by hand, and no part of `make test`. A flip whose text is no longer in its file, or is there twice, is an
error: it has to follow the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

ATTENTION = ("tests/attention",)
ANGULAR = ("tests/attention/test_angular.py", "tests/attention/test_castled.py")
LANDMARKS = ("tests/attention/test_landmarks.py", "tests/attention/test_castled.py")
CASTLED = ("tests/attention/test_castled.py",)
FOLDING = ("tests/test_folding.py",)
LOOP = ("tests/distillation/test_loop.py",)
OPTIMIZERS = ("tests/distillation/test_optimizers.py", "tests/distillation/test_loop.py")
LOSSES = ("tests/distillation/test_losses.py",)
SCHEDULE = ("tests/distillation/test_schedule.py",)
ROTARY = ("tests/families/test_eva.py",)
SWIN = ("tests/attention/test_reader.py", "tests/families/test_swin.py")
TORCHVISION = ("tests/families/test_torchvision.py",)
OWN = ("tests/families/test_own.py",)
PLANNING = ("tests/planning",)


@dataclass(frozen=True)
class Flip:
    """`before`, which is in `file` once, becomes `after`; one of `tests` has to fail."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


FLIPS = (
    # Readers: biases of places and regions.
    Flip("keys of another region", "attention/landmarks.py", "self.pool(k, v, regions.keys == number)",
         "self.pool(k, v, regions.keys >= number)", SWIN),
    Flip("queries of another region", "attention/landmarks.py", "regions.queries == number",
         "regions.queries <= number", SWIN),
    Flip("factors of a bias", "attention/reader.py", "bias.double() / softmax_scale", "bias.double()", SWIN),
    Flip("places behind q", "attention/reader.py", "_beside(self.q, self.more[0])", "_beside(self.q, -self.more[0])",
         SWIN),
    Flip("numbers of regions", "attention/reader.py", "before.gather(-1, first) - 1", "before.gather(-1, first)", SWIN),
    Flip("residual across regions", "attention/castled.py", "parts.append(found * inside[:, 0])", "parts.append(found)",
         SWIN),
    # The angular kernel.
    Flip("angular constant", "attention/angular.py",
         'values.mean(-2, keepdim=True) if config.constant == "mean"',
         'values.mean(-2, keepdim=True) if config.constant != "mean"', ANGULAR),
    Flip("angular sign", "attention/angular.py",
         "constant.to(v.dtype) + q_hat @ (context", "constant.to(v.dtype) - q_hat @ (context", ANGULAR),
    Flip("angular gain's constant", "attention/angular.py", "GAIN_TO_SCALE = 2 / math.pi",
         "GAIN_TO_SCALE = 1 / math.pi",
         ANGULAR),
    Flip("angular centring", "attention/angular.py",
         "context = context - k_hat.sum(-2)", "context = context + 0 * k_hat.sum(-2)", ANGULAR),
    Flip("angular centring, folded", "attention/angular.py",
         "@ (values - constant if center_values else values)", "@ values", (*ANGULAR, *FOLDING)),
    Flip("angular centring, channels first", "attention/angular.py",
         "(values - constant if self.config.center else values) @ k", "values @ k", (*CASTLED, *FOLDING)),
    Flip("angular row sum", "attention/angular.py", "y = y / (1 + q_hat @", "y = y / (1 - q_hat @", ANGULAR),
    Flip("angular gain's bound", "attention/angular.py", "0.99 * math.pi / 2", "1.2 * math.pi / 2",
         ANGULAR),
    Flip("angular gain's fit", "attention/angular.py", "fit = ((softmax - constant) * linear)",
         "fit = (softmax * linear)", ANGULAR),
    Flip("angular mean over N", "attention/angular.py", "scale = scale.to(values) * root",
         "scale = scale.to(values)", ANGULAR),
    # Landmarks.
    Flip("landmark entropy's sign", "attention/landmarks.py", "self.gain * (total - own) + self.bias",
         "self.bias - self.gain * (total - own)", LANDMARKS),
    Flip("landmark entropy left out", "attention/landmarks.py", "self.gain * (total - own) + self.bias",
         "0 * (total - own) + self.bias", LANDMARKS),
    Flip("landmark entropy's largest", "attention/landmarks.py", "logits.amax(-1, keepdim=True) - weights.amax",
         "0 - weights.amax", LANDMARKS),
    Flip("landmark entropy's keys", "attention/landmarks.py", "(total - own)", "(total + own)", LANDMARKS),
    Flip("landmark entropy, channels first", "attention/landmarks.py",
         "mass = self.mass(total, (self.directions * keys.transpose",
         "mass = 0 * self.mass(total, (self.directions * keys.transpose", (*LANDMARKS, *FOLDING)),
    Flip("landmark pooling", "attention/landmarks.py", "weights = logits.softmax(-1)", "weights = logits.softmax(-2)",
         LANDMARKS),
    Flip("landmark bias of keys, folded", "attention/landmarks.py", "self.qkv.bias.chunk(3)[1].zero_()",
         "self.qkv.bias.chunk(3)[2].zero_()", (*LANDMARKS, *FOLDING)),
    Flip("landmark scale, folded twice", "attention/landmarks.py", "self.softmax_scale = 1.0", "pass",
         (*LANDMARKS, *FOLDING)),
    Flip("landmark prefix rows, channels first", "attention/landmarks.py",
         "reshape(B, size, prefix) - y[:, :, :prefix]", "reshape(B, size, prefix)", (*LANDMARKS, *FOLDING)),
    # Features.
    Flip("features' power", "attention/features.py", "s = u * u * u if config.power == 3 else u * u.abs()",
         "s = u * u.abs()", ATTENTION),
    Flip("features' absolute half", "attention/features.py", "return torch.cat([s, s.abs()], -1)",
         "return torch.cat([s, s], -1)", ATTENTION),
    Flip("features' key weights", "attention/features.py", "* wide(key_logits).softmax(-2)", "/ key_logits.shape[-2]",
         ATTENTION),
    Flip("features' length, channels first", "attention/features.py", "(self.config.power / 2)", "self.config.power",
         (*ATTENTION, *FOLDING)),
    Flip("features' merged weights", "attention/features.py", "(trained.rotate_k, k), (trained.key_direction, k)",
         "(trained.rotate_k, k), (trained.key_direction, q)", (*ATTENTION, *FOLDING)),
    Flip("features' row scale", "attention/features.py", "k.T * trained.softmax_scale", "k.T", (*ATTENTION, *FOLDING)),
    # The snippet.
    Flip("snippet's root", "attention/snippet.py", "(values * root).to(v.dtype)", "values.to(v.dtype)", ATTENTION),
    Flip("snippet's weight of the branch", "attention/snippet.py", "weight = 2 * (", "weight = (", ATTENTION),
    # What stands beside a linear form.
    Flip("softmax scale", "attention/local.py", "logits = (q * softmax_scale) @ k", "logits = q @ k", CASTLED),
    Flip("softmax scale of windows with others", "attention/local.py", "    q = q * softmax_scale\n", "", LANDMARKS),
    Flip("windows' borders", "attention/local.py", "masked_fill(~inside, -torch.inf)", "masked_fill(~inside, 0.0)",
         ATTENTION),
    Flip("windows' rows and columns", "attention/local.py", "inside_row[:, None] & inside_column",
         "inside_row[:, None] | inside_column", ATTENTION),
    Flip("window share", "attention/castled.py", "(windows - patches)", "(patches - windows)", CASTLED),
    Flip("window share at the start", "attention/castled.py", "WINDOW_SHARE = 0.3", "WINDOW_SHARE = 0.7", CASTLED),
    Flip("depthwise residual", "attention/castled.py",
         "y if self.depthwise is None else y + depthwise_residual",
         "y if self.depthwise is None else y - depthwise_residual",
         ATTENTION),
    Flip("depthwise residual of patches", "attention/castled.py",
         "patches = patches + patches_residual(conv, v, self.grid)",
         "patches = patches - patches_residual(conv, v, self.grid)", ATTENTION),
    Flip("depthwise residual, transposed grid", "attention/depthwise.py", "height, width = grid.shape_for(N)",
         "width, height = grid.shape_for(N)", ATTENTION),
    Flip("prefix rows", "attention/castled.py", "return self.config.prefix_rows and self.grid.prefix > 0",
         "return self.config.prefix_rows and self.grid.prefix > 1", ATTENTION),
    Flip("unit vectors", "attention/norms.py", "length * d**-0.5", "length", ANGULAR),
    # The masked branch.
    Flip("threshold", "attention/masked_softmax.py", "mask = weights > threshold", "mask = weights >= threshold",
         ("tests/attention/test_masked_softmax.py", *CASTLED)),
    Flip("threshold that closes", "attention/masked_softmax.py", "CLOSED = 1.0", "CLOSED = 0.9",
         ("tests/attention/test_masked_softmax.py", *CASTLED)),
    Flip("mass that is kept", "attention/masked_softmax.py", "masked.sum(-1, keepdim=True)",
         "weights.sum(-1, keepdim=True)",
         ("tests/attention/test_masked_softmax.py", *CASTLED)),
    Flip("mass that is released", "attention/castled.py", "merge_heads((1 - mass)", "merge_heads((0 + mass)", CASTLED),
    Flip("gate", "attention/castled.py", "masked * self.mask_gate, mass * self.mask_gate",
         "masked * self.mask_gate, mass", CASTLED),
    Flip("gate to the teacher", "attention/castled.py", "self.mask_gate * (other - y)",
         "self.mask_gate * (y - other)", (*CASTLED, *LOOP)),
    Flip("schedule of the threshold", "distillation/schedule.py", "self.first ** (1 - share)", "self.first ** share",
         SCHEDULE),
    Flip("schedule of the gate", "distillation/schedule.py", "Mask(0.0, 1 - share)", "Mask(0.0, share)", SCHEDULE),
    Flip("order in which layers close", "distillation/schedule.py",
         'place = layer if self.order == "first"', 'place = layer if self.order == "last"', SCHEDULE),
    # Rotary positions.
    Flip("rotation's sign", "families/rotation.py", "return self.turned(q, k, table if self.index is None",
         "table = torch.cat([-table.chunk(2, -1)[0], table.chunk(2, -1)[1]], -1)\n"
         "        return self.turned(q, k, table if self.index is None", ROTARY),
    Flip("rotation of keys alone", "families/rotation.py", "        q, k = (apply_rot_embed_cat",
         "        _, k = (apply_rot_embed_cat", ROTARY),
    Flip("rotation of queries alone", "families/rotation.py", "        q, k = (apply_rot_embed_cat",
         "        q, _ = (apply_rot_embed_cat", ROTARY),
    Flip("rotation's pairs", "families/rotation.py", "table, half=self.half", "table, half=not self.half", ROTARY),
    Flip("rotation of prefix tokens", "families/rotation.py", "stay = (0, 0, prefix, 0)", "stay = (0, 0, 0, prefix)",
         ROTARY),
    Flip("rotation's cosine of prefix tokens", "families/rotation.py", "F.pad(cosines, stay, value=1.0)",
         "F.pad(cosines, stay)", ROTARY),
    Flip("rotation of each layer", "families/rotation.py", "else table[self.index]", "else table[0]", ROTARY),
    Flip("rotation's rows and columns", "families/rotation.py", "get_embed(shape=[height, width])",
         "get_embed(shape=[width, height])", ROTARY),
    Flip("rotation's rows and columns, another size", "families/rotation.py", "update_feat_shape([height, width])",
         "update_feat_shape([width, height])", ROTARY),
    # Attention modules of torch and torchvision.
    Flip("torchvision: regions of a shifted window", "families/torchvision_swin.py", "side - shift).long()",
         "side - shift - 1).long()", TORCHVISION),
    Flip("torchvision: shifting back", "families/torchvision_swin.py", "x = torch.roll(x, (down, right), (1, 2))",
         "x = torch.roll(x, (right, -down), (1, 2))", TORCHVISION),
    Flip("torchvision: bias of keys", "families/torchvision_swin.py", "torch.cat([q, torch.zeros_like(k), v])",
         "torch.cat([q, k, v])", TORCHVISION),
    Flip("torchvision: scale of cosines", "families/torchvision_swin.py", "F.normalize(q, dim=-1) * steepness",
         "F.normalize(q, dim=-1)", TORCHVISION),
    Flip("multihead: padding", "families/multihead.py", "hidden.long(), 1)", "(~hidden).long(), 1)", OWN),
    Flip("multihead: order of axes", "families/multihead.py", "(out if self.batch_first else out.transpose(0, 1))",
         "out", OWN),
    Flip("biases beside the projection", "families/eva.py", "(attention.q_bias, attention.k_bias, attention.v_bias)",
         "(attention.k_bias, attention.q_bias, attention.v_bias)", ROTARY),
    Flip("absorbed scale of a block", "families/eva.py", "scale_outputs_(linear, scale)",
         "scale_outputs_(linear, 1 / scale)", ROTARY),
    Flip("landmark bias of turned keys, folded", "attention/landmarks.py", "plain_k and self.rotation is None and",
         "plain_k and", ROTARY),
    # Folding.
    Flip("head scale, folded", "attention/angular.py", 'self.register_buffer("head_scale", trained.scale()',
         'self.register_buffer("head_scale", trained.gain', FOLDING),
    Flip("window share, folded", "attention/folded.py", "share.detach().clone()", "1 - share.detach()", FOLDING),
    Flip("depthwise kernel, folded", "attention/folded.py", "self.depthwise = trained.depthwise", "pass", FOLDING),
    Flip("absorbed LayerScale", "families/vit.py", "scale_outputs_(linear, scale.gamma)",
         "scale_outputs_(linear, 1 / scale.gamma)", FOLDING),
    Flip("LayerScale dropped", "families/vit.py", "scale_outputs_(linear, scale.gamma)", "pass", FOLDING),
    Flip("an open mask is folded", "folding.py", "if still_open:", "if not still_open:", FOLDING),
    Flip("certificate", "folding.py", "self.float64_logits <= FLOAT64_TOLERANCE and", "True or", FOLDING),
    Flip("rounding of the certificate", "folding.py", "ROUNDINGS * self.float32_rounding)", "1.0)", FOLDING),
    # What is learned.
    Flip("error of a channel", "distillation/losses.py", "/ torch.maximum(variance, floor)",
         "* torch.maximum(variance, floor)", LOSSES),
    Flip("weight of prefix tokens", "distillation/losses.py",
         "error[:, prefix:].mean() + PREFIX_WEIGHT * error[:, :prefix].mean()",
         "PREFIX_WEIGHT * error[:, prefix:].mean() + error[:, :prefix].mean()", LOSSES),
    Flip("distance of features", "distillation/losses.py", "distance = 1 - F.cosine", "distance = 1 + F.cosine",
         LOSSES),
    Flip("direction of the divergence", "tasks/classify.py", "F.kl_div(log_p, log_q", "F.kl_div(log_q, log_p", LOSSES),
    Flip("temperature's square", "tasks/classify.py", "* temperature**2", "* temperature", LOSSES),
    Flip("weights of the losses", "distillation/loop.py", "getattr(weights, name) * part", "part", LOOP),
    Flip("masks closed at the end", "distillation/loop.py",
         "    close_masks(student)\n    accelerator.unwrap_model(student).eval()\n    left",
         "    accelerator.unwrap_model(student).eval()\n    left", ("tests/test_pipeline.py",)),
    Flip("rate of what was added", "distillation/optimizers.py", "config.lr * config.added", "config.lr",
         ("tests/distillation",)),
    Flip("fall of the rate", "distillation/optimizers.py", '1 - share if decay == "linear"',
         'share if decay == "linear"',
         ("tests/distillation",)),
    Flip("Muon's shape", "distillation/muon.py", "max(1.0, rows / columns) ** 0.5", "1.0", OPTIMIZERS),
    Flip("Muon's coefficients", "distillation/muon.py",
         "(3.4445, -4.7750, 2.0315)", "(3.4445, 4.7750, 2.0315)", OPTIMIZERS),
    Flip("Muon's momentum", "distillation/muon.py",
         "lerp_(gradient, 1 - MOMENTUM)", "lerp_(gradient, MOMENTUM)", OPTIMIZERS),
    Flip("fit of the classifier", "distillation/readout.py", "temperature) + ridge * change",
         "temperature) - ridge * change",
         ("tests/distillation/test_readout.py",)),
    Flip("judge of the classifier", "distillation/readout.py", "if not 0 <= judgements[penalty] < before:",
         "if 0 <= judgements[penalty] < before:", ("tests/distillation/test_readout.py",)),
    Flip("order of lessons", "distillation/align.py", "return step // self.part * self.held if",
         "return step // self.part if", ("tests/distillation/test_align.py",)),
    Flip("guard of the rate", "distillation/guard.py", "factor /= FACTOR", "factor *= 1.0 / FACTOR**3",
         ("tests/distillation",)),
    Flip("rate of large weights", "distillation/optimizers.py", "max(1.0, size / usual)", "max(1.0, usual / size)",
         OPTIMIZERS),
    Flip("rise of a short phase", "distillation/optimizers.py", "min(ALIGN_RISING, steps // 4)", "ALIGN_RISING",
         OPTIMIZERS),
    Flip("rise in a short trial", "distillation/guard.py", "min(RISING, len(tried))", "RISING", OPTIMIZERS),
    Flip("what a trial takes", "distillation/guard.py", "return 1.5 * min(TRIED", "return 0.5 * min(TRIED",
         ("tests/distillation/test_pace.py",)),
    Flip("minutes of the looks", "distillation/pace.py", "+ looked_at * self.look) + trial",
         "- looked_at * self.look) + trial", ("tests/distillation/test_pace.py",)),
    # Which layers.
    Flip("sort order of layers", "planning/hybrid.py", "key=lambda entry: -entry.divergence",
         "key=lambda entry: entry.divergence", PLANNING),
    Flip("what a plan castles", "planning/hybrid.py", "if entry.block not in kept", "if entry.block in kept", PLANNING),
    Flip("budget of a plan", "planning/hybrid.py", "max(self.max_drop, 100 / self.images)",
         "min(self.max_drop, 100 / self.images)", PLANNING),
    Flip("sensitivity with the mask open", "planning/sensitivity.py",
         "        close_masks(student)\n        found", "        found", PLANNING),
    Flip("points that are lost", "tasks/base.py", "return before - after if",
         "return after - before if", ("tests/evaluation", "tests/test_pipeline.py")),
    Flip("maps by channel", "distillation/losses.py", "cosine + channel_error(student, teacher, prefix) if by_channel",
         "cosine if by_channel", LOSSES),
    Flip("pixels without a label", "tasks/segment.py", "[labels != IGNORED]", "[labels == labels]",
         ("tests/tasks",)),
    Flip("rotations of folded features", "attention/features.py", " and self.rotation is None\n", "\n",
         ("tests/families/test_eva.py",)),
    Flip("a budget that is met exactly", "planning/hybrid.py", "allowed + ROUNDING", "allowed", PLANNING),
    Flip("places of tokens in training", "distillation/mode.py", " or _is_random(module)", "",
         ("tests/distillation/test_mode.py",)),
    Flip("few images for an engine", "exporting/trt_engine.py", "self.smallest - len(part)", "0",
         ("tests/exporting/test_trt_rtx.py",)),
    Flip("crowds", "dense/boxes.py", "image[:, CORNERS] < NO_BOX", "image[:, CORNERS] < 2 * NO_BOX",
         ("tests/tasks",)),
    Flip("kind of a crowd", "data/targets.py", "NO_BOX - 1 - kind", "NO_BOX - kind",
         ("tests/data/test_annotated.py", "tests/tasks")),
    Flip("images of another shape", "families/hub.py", "if _known(model).prefix is not None:", "if False:",
         ("tests/families/test_hub.py",)),
    Flip("standard error of a loss", "tasks/base.py", "/ len(values) ** 0.5", "/ len(values)",
         ("tests/evaluation/test_accuracy.py",)),
    Flip("standard error of a mIoU", "tasks/segment.py", "(both - whole * either)", "both",
         ("tests/tasks/test_segment.py",)),
    Flip("divergence of kinds", "tasks/detect.py", "- _cross_entropy(wanted, likely)",
         "+ _cross_entropy(wanted, likely)", ("tests/tasks",)),
    # What is said of an artifact.
    Flip("parity's tolerance", "artifact/parity.py", "tolerance.rtol * expected.abs()",
         "1000 * tolerance.rtol * expected.abs()", ("tests/artifact",)),
    Flip("parity's noise", "artifact/parity.py", "(expected - mean).square()", "expected.square()",
         ("tests/artifact",)),
)  # fmt: skip


def survives(flip: Flip, folder: Path) -> bool:
    """Whether no test of the flip's fails in `folder`, a copy of the package and its tests."""
    file = folder / "castling_convert" / flip.file
    whole = file.read_text()
    if whole.count(flip.before) != 1:
        raise SystemExit(f"{flip.name}: {flip.before!r} is {whole.count(flip.before)} times in {flip.file}")
    file.write_text(whole.replace(flip.before, flip.after))
    try:
        return passes(flip.tests, folder)
    finally:
        file.write_text(whole)


def passes(tests: Iterable[str], folder: Path) -> bool:
    """Whether these tests pass in `folder`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(tests)}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main(words: list[str]) -> int:
    chosen = [flip for flip in FLIPS if all(word in flip.name for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("castling_convert", "tests", "recipes", "examples", "benchmarks"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".cache"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if not passes(dict.fromkeys(test for flip in chosen for test in flip.tests), folder):
            raise SystemExit("the tests fail without any flip; nothing can be learned from them")
        for flip in chosen:
            started = time.monotonic()
            survived = survives(flip, folder)
            survivors += [flip.name] if survived else []
            print(
                f"{'SURVIVED' if survived else 'noticed':<9} {flip.name} ({time.monotonic() - started:.0f} s)",
                flush=True,
            )
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} flips were noticed")
    for name in survivors:
        print(f"survived: {name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
