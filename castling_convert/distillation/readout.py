"""What ends a run: the classifier fitted to the features that the student has now.

At a rate that a pretrained model bears, the steps of the second phase hardly move its classifier, and a part of what is
left between student and teacher is one that a linear map of the last features takes back. For fixed features the
divergence is convex in the classifier's weights, so it is fitted at once, held to where it was by a ridge penalty. The
features are those of the last images of the second phase, as they were met; no forward is added. A quarter of them
judges how strong the penalty is, and whether the classifier is changed at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..tasks.classify import logit_divergence
from . import processes

KEPT = 2048
"""Images whose features are kept."""
PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""On the squared change of the weights, in units of the features' mean square."""
JUDGES = 4
"""One image in so many."""
ITERATIONS = 50


class Readout:
    """The classifier's inputs in the last steps, and the teacher's logits beside them."""

    def __init__(self, student: Any) -> None:
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
        features, expected = processes.gathered(features), processes.gathered(expected.detach())
        self.features = torch.cat([self.features, features.float().cpu()])[-KEPT:]
        self.expected = torch.cat([self.expected, expected.float().cpu()])[-KEPT:]

    def fit(self, temperature: float) -> float | None:
        """Fit the classifier, in place.

        Returns:
            The divergence on the images that judge, as a share of what it was; None where nothing was changed.
        """
        if self.classifier is None or len(self.features) < 2 * JUDGES:
            return None
        judging = torch.arange(len(self.features)) % JUDGES == 0

        def judged(classifier: nn.Linear) -> float:
            with torch.no_grad():
                return logit_divergence(classifier(self.features[judging]), self.expected[judging], temperature).item()

        before = judged(_on_cpu(self.classifier))
        judgements = {p: judged(self._fitted(p, ~judging, temperature)) for p in PENALTIES}
        penalty = min(judgements, key=judgements.__getitem__)
        if not 0 <= judgements[penalty] < before:  # below zero is rounding: there is nothing left to fit
            return None
        fitted = self._fitted(penalty, torch.ones_like(judging), temperature)
        self.classifier.load_state_dict(fitted.state_dict())
        return judgements[penalty] / before

    def _fitted(self, penalty: float, chosen: Tensor, temperature: float) -> nn.Linear:
        """A copy of the classifier, fitted to the chosen images."""
        assert self.classifier is not None
        fitted = _on_cpu(self.classifier)
        start, features, expected = fitted.weight.detach().clone(), self.features[chosen], self.expected[chosen]
        ridge = penalty * features.square().mean()
        optimizer = torch.optim.LBFGS(fitted.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            change = (fitted.weight - start).square().sum()
            loss = logit_divergence(fitted(features), expected, temperature) + ridge * change
            loss.backward()
            return loss

        optimizer.step(closure)
        return fitted


def _on_cpu(classifier: nn.Linear) -> nn.Linear:
    return copy.deepcopy(classifier).float().cpu()
