"""A user's metric of a model that is lent other weights for a while, and left as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from dcompress.errors import EncodeError

__all__ = ["Evaluate", "Evaluator"]

Evaluate = Callable[[Any], Any]


class Evaluator:
    """A model and a metric; a context that gives the model back as it was.

    Parameters
    ----------
    model : Module
        Compiled or not.
    evaluate : callable
        Given the model, returns a number; it may set the model's mode, and run it as it likes.
    lower_is_better : bool
        Whether less of it is better, as of a loss.

    Attributes
    ----------
    n_calls : int
        How often the metric was measured.

    Raises
    ------
    EncodeError
        The model is no module, or the metric cannot be called.
    """

    def __init__(self, model: nn.Module, evaluate: Evaluate, *, lower_is_better: bool = False) -> None:
        given: object = model
        if not isinstance(given, nn.Module):
            raise EncodeError(f"a torch module is wanted, not {type(given).__name__}")
        if not callable(evaluate):
            raise EncodeError(f"evaluate must be a function of the model, not {type(evaluate).__name__}")
        self._model = model
        self._plain: nn.Module = getattr(model, "_orig_mod", model)
        self._evaluate = evaluate
        self._sign = -1.0 if lower_is_better else 1.0
        self.n_calls = 0
        self._saved: dict[str, Any] = {}
        self._modes: list[tuple[nn.Module, bool]] = []

    def __enter__(self) -> Evaluator:
        self._saved = copy.deepcopy(self._plain.state_dict())  # what is tied stays tied
        self._modes = [(module, module.training) for module in self._plain.modules()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        self._saved = {}

    def state_dict(self) -> Mapping[str, Any]:
        """Return the model's own state, a copy that was made when the context was entered."""
        return self._saved

    def measure(self, state_dict: Mapping[str, Any] | None = None) -> float:
        """Return the metric with other weights.

        Parameters
        ----------
        state_dict : mapping of str to Tensor, optional
            What replaces the model's own; it need not hold all of them.

        Raises
        ------
        EncodeError
            The metric is no number.
        """
        if state_dict is not None:
            merged = copy.copy(self._saved)  # with its version numbers
            merged.update(state_dict)
            self._plain.load_state_dict(merged)
        self.n_calls += 1
        try:
            found = self._evaluate(self._model)
        finally:
            self._restore()
        try:
            return float(found.detach() if isinstance(found, Tensor) else found)
        except (TypeError, ValueError, RuntimeError):
            raise EncodeError(f"evaluate must return a number, not {type(found).__name__}") from None

    def measure_own(self) -> float:
        """Return the metric of the model as it is.

        Raises
        ------
        EncodeError
            It is no finite number.
        """
        value = self.measure()
        if not math.isfinite(value):
            raise EncodeError(
                f"evaluate gives {value} for the model as it is: nothing can be compared with it"
            )
        return value

    def margin(self, value: float, baseline: float, max_drop: float) -> float:
        """Return how much better a value is than the worst that is allowed; NaN is worse than anything."""
        margin = self._sign * (value - baseline) + max_drop
        return -math.inf if math.isnan(margin) else margin

    def _restore(self) -> None:
        """Give the model its own weights and modes."""
        with torch.no_grad():
            self._plain.load_state_dict(self._saved)
        for module, training in self._modes:
            module.training = training
