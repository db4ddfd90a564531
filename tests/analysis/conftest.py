from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on more threads than one."""
    torch.set_num_threads(1)
