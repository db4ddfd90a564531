from __future__ import annotations

import contextlib
import ctypes
import sys
from functools import cache

import pytest
import timm
import torch

torch.set_num_threads(1)  # models this small are slower on more, and two test workers share two cores


def _read_the_operators_of_onnx_once() -> None:
    """torch's exporter reads the sources of its 500 operators anew for every export, which is a tenth of the time of
    those of the tests. It only looks things up in what it makes of them."""
    with contextlib.suppress(ImportError, AttributeError):  # a torch where this has another name is as slow as ever
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))


_read_the_operators_of_onnx_once()


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


class _Stack(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@pytest.fixture(autouse=True)
def _signals_come_on_the_ordinary_stack() -> None:
    """On a CPU with AMX a worker died without a word at the first signal that Python handled, after some minutes of
    tests: there was no room for it on the stack that a library had set apart for signals."""
    disable = 2  # SS_DISABLE of Linux
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(None, disable, 0)), None)


def tiny_vit(**arguments):
    torch.manual_seed(0)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **(values | arguments)).eval()


@pytest.fixture
def vit():
    return tiny_vit
