"""int8 by NNCF, for OpenVINO: its default scheme for transformers."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from importlib import import_module
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..artifact.options import ExportOptions
from ..artifact.parity import noise
from ..artifact.prepare import Deployable
from ..artifact.quiet import quiet
from ..artifact.runner import expected, judged_images
from ..data.spec import GENERATED
from .calibration import NO_CALIBRATION, RANKED_BY, TARGET_NOISE, calibration_batches, calibration_images, say_search

LOGGERS = ("nncf", "torch.utils.cpp_extension")
"""NNCF's own, and torch's on the CUDA compiler that NNCF makes it look for."""


def quantize(graph: Any, prepared: Deployable, options: ExportOptions) -> tuple[Any, dict[str, Any]]:
    """OpenVINO's `graph` of `prepared` in int8, and notes: a `warning` when the calibration images were generated.

    Where the noise on calibration images is beyond TARGET_NOISE, NNCF puts the layers that hurt most back to float
    until it is within.

    Raises:
        ExportError: too few calibration images. DataError: they can't be read.
    """
    notes = {"warning": NO_CALIBRATION} if options.calibration in (None, GENERATED) else {}
    return _quantized(graph, prepared, options), notes


def _quantized(graph: Any, prepared: Deployable, options: ExportOptions) -> Any:
    with quiet(*LOGGERS), redirect_stdout(io.StringIO()):  # it draws progress bars
        import nncf

        batches = calibration_batches(calibration_images(prepared, options), options)
        signature, task = prepared.signature, prepared.task
        scheme: dict[str, Any] = {
            "ignored_scope": nncf.IgnoredScope(names=_left_float(graph)),
            "subset_size": len(batches),
            "preset": nncf.QuantizationPreset.PERFORMANCE,
            "model_type": nncf.ModelType.TRANSFORMER,
        }
        calibration = nncf.Dataset(batches, lambda images: signature.inputs(images).numpy())
        whole = nncf.quantize(graph, calibration, **scheme)
        if options.latency_only:
            return whole
        judged = [
            (signature.inputs(images).numpy(), expected(prepared.model, signature, images))
            for images in batches[:: max(1, len(batches) // judged_images(prepared.task))]
        ]

        def score(run: Any, chosen: Iterable[tuple[np.ndarray, Tensor]]) -> tuple[float, list[float]]:
            """Minus the noise on all that NNCF chose, and on each."""
            pairs = [(torch.from_numpy(run(images)[0].copy()), wanted) for images, wanted in chosen]
            outputs, references = (torch.cat(column) for column in zip(*pairs, strict=True))
            return -noise(outputs, references, task), [-noise(*pair, task) for pair in pairs]

        off = -score(import_module("openvino").Core().compile_model(whole, "CPU"), judged)[0]
        if off <= TARGET_NOISE:
            return whole
        say_search(options, off)
        return nncf.quantize_with_accuracy_control(
            graph,
            calibration,
            nncf.Dataset(judged, itemgetter(0)),
            score,
            max_drop=TARGET_NOISE,
            **scheme,
            advanced_quantization_parameters=_reversible(),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=min(RANKED_BY, len(judged))
            ),
        )


def _reversible() -> Any:
    """Nothing that scales a layer's weights against those or the activations before it: a layer that NNCF puts back to
    float gets its weights as they were, and whatever was scaled for the others stays."""
    import nncf

    return nncf.AdvancedQuantizationParameters(
        disable_channel_alignment=True,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
    )


def _left_float(graph: Any) -> list[str]:
    """Names of what gains nothing in int8: the products of two activations and those of prefix tokens, being small,
    and the depthwise convolutions, which OpenVINO computes in float and would only round the input of."""
    return [
        node.get_friendly_name()
        for node in graph.get_ops()
        if (node.get_type_name() == "MatMul" and not _is_weight(node.input_value(1).get_node()))
        or (node.get_type_name() == "MatMul" and len(node.input_value(1).get_partial_shape()) > 2)
        or node.get_type_name() == "GroupConvolution"
    ]


def _is_weight(node: Any) -> bool:
    return node.get_type_name() == "Constant" or (
        node.get_input_size() > 0
        and all(_is_weight(node.input_value(index).get_node()) for index in range(node.get_input_size()))
    )
