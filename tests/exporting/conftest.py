from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def rtx() -> Any:
    """The module `tensorrt_rtx`; without it the test is skipped."""
    return pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which [dev] has on Linux x86-64")


@pytest.fixture
def network(rtx) -> Iterator[Any]:
    """An empty network of it, strongly typed."""
    from castling_convert.exporting.trt_engine import listener

    builder = rtx.Builder(listener(rtx))
    yield builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))  # the builder outlives it


@pytest.fixture
def parser(rtx, network) -> Any:
    """Its ONNX parser, into `network`."""
    from castling_convert.exporting.trt_engine import listener

    return rtx.OnnxParser(network, listener(rtx))
