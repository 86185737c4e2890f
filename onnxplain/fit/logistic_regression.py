"""Multinomial logistic regression, by scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError, UsageError

Array = NDArray[Any]
STEPS = 5000  # of L-BFGS at most; features of a trained net take some hundred


def require_sklearn() -> Any:
    """`sklearn.linear_model`. Raises UsageError where it is not installed."""
    try:
        import sklearn.linear_model
    except ImportError as error:
        raise UsageError("fitting needs scikit-learn, which is not installed: pip install 'onnxplain[fit]'.") from error
    return sklearn.linear_model


def logistic_regression(features: Array, classes: Array) -> tuple[Array, Array]:
    """Weights (K, C) and bias (K,) of logits for features (N, C) of classes 0 … K - 1, all of them present; float64.

    argmin over w, b of sum_n -log softmax(w z_n + b)_{class n} + |w|² / 2, where z are the features less their mean, by
    their standard deviation: the penalty, scikit-learn's default, does not depend on a channel's unit. Mean and
    deviation are then taken into weights and bias. Raises InputError, UsageError.
    """
    module = require_sklearn()
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    model = module.LogisticRegression(C=1.0, max_iter=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=_convergence_warning())
        try:
            model.fit((features - mean) / deviation, classes)
        except _convergence_warning() as error:
            raise InputError(f"the logistic regression found no end in {STEPS} steps: are the labels right?") from error
    weights, bias = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(weights) == 1:  # of two classes it gives the difference of the logits
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    weights = weights / deviation
    return weights, bias - weights @ mean


def _convergence_warning() -> type[Warning]:
    from sklearn.exceptions import ConvergenceWarning

    found: type[Warning] = ConvergenceWarning
    return found
