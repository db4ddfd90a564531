from __future__ import annotations

import ctypes
import sys

import pytest
import torch

torch.set_num_threads(1)  # models this small are slower on more, and two test workers share two cores


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


class _Stack(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@pytest.fixture(autouse=True)
def _signals_come_on_the_ordinary_stack() -> None:
    """Libraries give signals a stack of their own that is too small where a CPU has AMX and a test has used it: the
    first signal that Python handles then kills the process, without a word."""
    disable = 2  # SS_DISABLE of Linux
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(None, disable, 0)), None)
