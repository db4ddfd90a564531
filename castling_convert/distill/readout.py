"""What ends a run: the classifier fitted to the features that the student has now.

At a rate that a pretrained model bears, the steps of the second phase hardly move its classifier, and a part of what is
left between student and teacher is one that a linear map of the last features takes back. For fixed features the
divergence is convex in the classifier's weights, so it is fitted at once, held to where it was by a ridge penalty. The
features are those of the last images of the second phase, as they were met; no forward is added. A quarter of them
judges how strong the penalty is, and whether the classifier is changed at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .losses import logit_divergence

KEPT = 2048
"""Images whose features are kept: with some hundreds the fit follows the images it is made on, and wins nothing."""
PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""On the squared change of the weights, in units of the features' mean square."""
JUDGES = 4
"""One image in so many."""
ITERATIONS = 50


class Readout:
    """The classifier's inputs in the last steps, and the teacher's logits beside them."""

    def __init__(self, student: Any, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        classifier = student.get_classifier() if hasattr(student, "get_classifier") else None
        trained = isinstance(classifier, nn.Linear) and classifier.weight.requires_grad
        self.classifier: nn.Linear | None = classifier if trained else None
        self.features = torch.empty(0)
        self.expected = torch.empty(0)
        self.last: tuple[Tensor, Tensor] | None = None

    def state_dict(self) -> dict[str, Tensor]:
        return {"features": self.features, "expected": self.expected}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.features, self.expected = state["features"], state["expected"]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, see what goes into the classifier and comes out of it."""

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.last = inputs[0].detach(), output.detach()

        if self.classifier is None:
            yield
            return
        handle = self.classifier.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def keep(self, logits: Tensor, expected: Tensor) -> None:
        """Of the step that was just done: the student's logits and the teacher's, [B, classes].

        Nothing is kept of a model whose logits are not what its classifier returns.
        """
        if self.classifier is None or self.last is None:
            return
        features, output = self.last
        if output.shape != logits.shape or not torch.equal(output, logits):
            self.classifier = None
            return
        features, expected = self.accelerator.gather((features, expected.detach()))
        self.features = torch.cat([self.features, features.float().cpu()])[-KEPT:]
        self.expected = torch.cat([self.expected, expected.float().cpu()])[-KEPT:]

    def fit(self, temperature: float) -> float | None:
        """Fit the classifier, in place.

        Returns:
            The divergence on the images that judge, as a share of what it was; None where nothing was changed.
        """
        if self.classifier is None or len(self.features) < 2 * JUDGES:
            return None
        weight, bias = (
            None if p is None else p.detach().float().cpu() for p in (self.classifier.weight, self.classifier.bias)
        )
        assert weight is not None
        bias = torch.zeros(len(weight)) if bias is None else bias
        judging = torch.arange(len(self.features)) % JUDGES == 0

        def divergence(values: tuple[Tensor, Tensor], chosen: Tensor) -> Tensor:
            logits = self.features[chosen] @ values[0].T + values[1]
            return logit_divergence(logits, self.expected[chosen], temperature)

        before = divergence((weight, bias), judging).item()
        penalty, after = min(
            ((p, divergence(self._fitted(weight, bias, ~judging, p, divergence), judging).item()) for p in PENALTIES),
            key=lambda found: found[1],
        )
        if not after < before:
            return None
        everything = torch.ones_like(judging)
        fitted = self._fitted(weight, bias, everything, penalty, divergence)
        with torch.no_grad():
            self.classifier.weight.copy_(fitted[0])
            if self.classifier.bias is not None:
                self.classifier.bias.copy_(fitted[1])
        return after / before

    def _fitted(
        self, weight: Tensor, bias: Tensor, chosen: Tensor, penalty: float, divergence: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.classifier is not None
        change, shift = torch.zeros_like(weight).requires_grad_(), torch.zeros_like(bias).requires_grad_()
        learned = [change] if self.classifier.bias is None else [change, shift]
        ridge = penalty * self.features[chosen].square().mean()
        optimizer = torch.optim.LBFGS(learned, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = divergence((weight + change, bias + shift), chosen) + ridge * change.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return (weight + change).detach(), (bias + shift).detach()
