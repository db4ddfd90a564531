"""Images for a conversion without data."""

from __future__ import annotations

import numpy as np
import pytest

from castling_convert.data import generated
from castling_convert.data.generated import GeneratedImages, curves, dead_leaves, natural_noise


@pytest.mark.parametrize("make", [dead_leaves, curves])
@pytest.mark.parametrize("size", [(24, 40), (224, 224), (7, 5)])
def test_size_and_variety(make, size):
    images = [np.asarray(make(size, np.random.default_rng(seed))) for seed in range(12)]
    assert {image.shape for image in images} == {(*size, 3)}
    assert all(image.std() > 5 for image in images)
    assert len({image.tobytes() for image in images}) == 12


def test_both_kinds_are_drawn(monkeypatch):
    drawn = []
    for name in ("curves", "dead_leaves"):
        whole = getattr(generated, name)
        monkeypatch.setattr(generated, name, lambda *a, name=name, whole=whole: drawn.append(name) or whole(*a))
    data = GeneratedImages((16, 16), "L", lambda image: image)
    for index in range(60):
        data[index]
    assert drawn.count("curves") == pytest.approx(60 * generated.CURVES, abs=15)


def test_noise_has_the_spectrum_of_natural_images():
    """Power falls as f^-2, so by a factor of four from one octave to the next."""
    rng = np.random.default_rng(0)
    power = sum(np.abs(np.fft.rfft2(natural_noise((128, 128), rng)[..., 0])) ** 2 for _ in range(40))
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128)[None, :])
    octaves = [power[(frequency > low) & (frequency <= 2 * low)].mean() for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8)]
    np.testing.assert_allclose(np.array(octaves[:-1]) / octaves[1:], 4, rtol=0.35)
