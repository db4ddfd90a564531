"""Detections in the artifact: what `--nms` puts behind the raw boxes of a detector.

ONNX's own operator NonMaxSuppression, which onnxruntime and OpenVINO have kernels for, with the thresholds of
`dense.boxes`. What comes out is float32 `detections` [M, 7]: the number of the image in the batch, x1, y1, x2, y2 in
pixels of the images that went in, the kind, and the score. Image by image, and of each kind by kind, by falling score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import parser
from torch import Tensor

from ..artifact.options import ExportOptions
from ..artifact.prepare import Deployable
from ..artifact.runner import Runner
from ..artifact.signature import DETECTIONS, Signature
from ..data.probe import probe_images
from ..dense.boxes import CORNERS, LEAST, MOST, OVERLAP, Found, found, shared, suppressed
from ..errors import CheckFailed, ExportError

TAIL = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
suppression (float[B, N, {width}] {source}) => (float[M, 7] {detections})
<
    int64[2] nms_parts = {{{corners}, {kinds}}}, int64[3] nms_each = {{1, 1, 1}}, int64[1] nms_last = {{1}},
    int64[1] nms_most = {{{most}}}, float[1] nms_overlap = {{{overlap}}}, float[1] nms_least = {{{least}}}
>
{{
    nms_corners, nms_logits = Split <axis: int = 2> ({source}, nms_parts)
    nms_likely = Sigmoid (nms_logits)
    nms_scores = Transpose <perm: ints = [0, 2, 1]> (nms_likely)
    nms_chosen = NonMaxSuppression (nms_corners, nms_scores, nms_most, nms_overlap, nms_least)
    nms_image, nms_kind, nms_place = Split <axis: int = 1> (nms_chosen, nms_each)
    nms_where = Concat <axis: int = 1> (nms_image, nms_place)
    nms_boxes = GatherND (nms_corners, nms_where)
    nms_score = GatherND (nms_scores, nms_chosen)
    nms_score_column = Unsqueeze (nms_score, nms_last)
    nms_image_number = Cast <to: int = 1> (nms_image)
    nms_kind_number = Cast <to: int = 1> (nms_kind)
    {detections} = Concat <axis: int = 1> (nms_image_number, nms_boxes, nms_kind_number, nms_score_column)
}}
"""
AGREEING = 98.0
"""Percent of the detections that a whole artifact has to share with what its raw boxes say: in two graphs a score may
be rounded to either side of a threshold."""


def refuse(prepared: Deployable) -> None:
    """Raise ExportError where the output is not that of a detector, in float32."""
    if prepared.signature.output != "boxes":
        kind = type(prepared.model).__name__
        raise ExportError(f"--nms is for detectors, and {kind} is for the task {prepared.task.name}; leave out --nms")
    if prepared.signature.dtype != "float32":
        raise ExportError(f"--nms needs boxes in float32, not in {prepared.signature.dtype}; leave out --io same")


def signature_with(signature: Signature) -> Signature:
    """That of the artifact with its detections."""
    return replace(signature, output=DETECTIONS)


def tail(source: str, kinds: int, opset: int, ir: int) -> onnx.ModelProto:
    """A model of its own, from raw boxes [B, N, 4 + kinds] called `source` to `detections`."""
    text = TAIL.format(
        ir=ir, opset=opset, width=CORNERS + kinds, source=source, detections=DETECTIONS, corners=CORNERS, kinds=kinds,
        most=MOST, overlap=OVERLAP, least=LEAST,
    )  # fmt: skip
    proto = parser.parse_model(text)
    onnx.checker.check_model(proto)
    return proto


def tail_of(prepared: Deployable, proto: onnx.ModelProto) -> onnx.ModelProto:
    """That for the graph `proto` of a model."""
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return tail(prepared.signature.output, kinds_of(proto), opset, proto.ir_version)


def kinds_of(proto: onnx.ModelProto) -> int:
    """How many kinds a graph with raw boxes tells apart."""
    return proto.graph.output[0].type.tensor_type.shape.dim[-1].dim_value - CORNERS


def append_(proto: onnx.ModelProto, end: onnx.ModelProto) -> None:
    """Put what `end` does behind the output of `proto` that it takes."""
    proto.graph.node.extend(end.graph.node)
    proto.graph.initializer.extend(end.graph.initializer)
    del proto.graph.output[:]
    proto.graph.output.extend(end.graph.output)
    onnx.checker.check_model(proto)


def check_tail(run: Callable[[np.ndarray], np.ndarray], kinds: int) -> None:
    """Hold `run`, the tail alone in a runtime, against torchvision's batched_nms on boxes of chance.

    Raises:
        CheckFailed: it finds others.
    """
    generator = torch.Generator().manual_seed(0)
    corners = 100 * torch.rand(2, 60, 2, generator=generator)
    sizes = 10 + 40 * torch.rand(2, 60, 2, generator=generator)
    raw = torch.cat([corners, corners + sizes, 2 * torch.randn(2, 60, kinds, generator=generator) - 2], -1)
    rows = torch.as_tensor(run(raw.numpy()))
    wanted = torch.cat([_rows(suppressed(one, candidates=None), index) for index, one in enumerate(raw)])
    if rows.shape != wanted.shape or not torch.allclose(rows, wanted, rtol=1e-4, atol=1e-3):
        raise CheckFailed(
            f"the operator NonMaxSuppression finds {len(rows)} boxes where torchvision finds {len(wanted)}, or others; "
            "no file was written; leave out --nms"
        )


def check_whole(raw: Runner, whole: Runner, prepared: Deployable, options: ExportOptions) -> None:
    """Hold the detections of an artifact against those of its raw boxes.

    Raises:
        CheckFailed: fewer than AGREEING percent of them are the same.
    """
    images = probe_images(prepared.model, options.fixed_batch or 2, size=prepared.signature.input_size[1:])
    partners, counted = shared(found(whole(images)), [suppressed(one, None) for one in raw(images)])
    if 100 * partners < AGREEING * counted:
        raise CheckFailed(
            f"of {counted} detections of the artifact and of its raw boxes {counted - partners} have no partner; "
            "no file was written; leave out --nms"
        )


def _rows(image: Found, index: int) -> Tensor:
    """As an artifact has them, [n, 7]."""
    order = image.kinds.argsort(stable=True)
    columns = [torch.full((len(order), 1), float(index)), image.boxes, image.kinds[:, None], image.scores[:, None]]
    return torch.cat([column.float() for column in columns], 1)[order]
