"""Images made here, for a conversion without data: curves and dead leaves over natural noise.

Half of the images are dead leaves, after Lee, Mumford and Huang, "Occlusion Models for Natural Images",
IJCV 2001: discs whose radii follow a power law cover each other, each with noise of a natural (1/f)
spectrum. The other half are a few thick Bezier curves on a plain or noisy ground: contours, letters,
drawings. What a conversion on them reaches is measured in `benchmarks/accuracy.md`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

CURVES = 0.5
"""Share of the images that are curves."""
TO_LEARN_FROM, TO_COMPARE_ON = 100_000, 1_000
"""Images of a run, and of a comparison of two models, which has to end."""


class GeneratedImages(Dataset[tuple[Tensor, int]]):
    """`count` images of `size` (height, width); image i depends on the seed and i alone."""

    def __init__(
        self,
        size: tuple[int, int],
        mode: str,
        transform: Callable[[Image.Image], Tensor],
        count: int = TO_LEARN_FROM,
        seed: int = 0,
    ) -> None:
        self.size, self.mode, self.transform, self.count, self.seed = size, mode, transform, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng((self.seed, index))
        make = curves if rng.uniform() < CURVES else dead_leaves
        return self.transform(make(self.size, rng).convert(self.mode)), -1


def dead_leaves(size: tuple[int, int], rng: np.random.Generator, leaves: int = 60) -> Image.Image:
    """One RGB image of `size` (height, width) covered by discs."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    noise = natural_noise(size, rng)
    canvas = rng.uniform(0, 255, 3) + 40 * noise
    span = min(height, width)
    for _ in range(leaves):
        # Radii between 2 % and 50 % of the image with density r^-3.
        low, high = 0.02 * span, 0.5 * span
        radius = (low**-2 + rng.uniform() * (high**-2 - low**-2)) ** -0.5
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        # Another part of the same noise: a spectrum a leaf would cost more than all the rest.
        texture = np.roll(noise, (int(rng.integers(height)), int(rng.integers(width))), axis=(0, 1))[inside]
        canvas[inside] = rng.uniform(0, 255, 3) + rng.uniform(0, 60) * texture
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def curves(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """One RGB image of `size` (height, width) with one to four cubic Bezier curves."""
    height, width = size
    fine = max(1, min(4, 256 // max(size)))  # drawn larger and scaled down: PIL's lines have hard edges
    ground = rng.uniform(0, 255, 3) * (rng.uniform() < 0.5)
    if rng.uniform() < 0.25:
        ground = ground + 40 * natural_noise(size, rng)
    canvas = np.broadcast_to(np.clip(ground, 0, 255), (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(canvas).resize((width * fine, height * fine))
    draw = ImageDraw.Draw(image)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(int(rng.integers(1, 5))):
        a, b, c, d = rng.uniform(0.05, 0.95, (4, 2)) * (width * fine, height * fine)
        points = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
        thickness = max(1, round(rng.uniform(0.03, 0.2) * min(size) * fine))
        colour = tuple(int(value) for value in rng.uniform(0, 255, 3))
        draw.line([tuple(point) for point in points], fill=colour, width=thickness, joint="curve")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def natural_noise(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise [H, W, 1] with amplitude spectrum 1/f, zero mean, unit deviation."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    shape = frequency.shape
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / frequency
    noise = np.fft.irfft2(spectrum, s=size)
    return ((noise - noise.mean()) / max(float(noise.std()), 1e-8))[..., None]
