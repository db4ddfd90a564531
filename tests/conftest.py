from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)  # models this small are slower on more, and two test workers share two cores


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)
