"""The figure that may drop by so much: top-1 agreement, or a function of the user's."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from oamip_onnx.calibration import BATCH_SIZE, Samples, import_file
from oamip_onnx.errors import UsageError, closest, first_line
from oamip_onnx.model import Array
from oamip_onnx.runtime import RuntimeOptions, Session
from oamip_onnx.verify.drift import mean_cosine, run_output

MetricFunction = Callable[[Mapping[str, Array], npt.NDArray[np.int64] | None], float]
"""Returns a figure, the larger the better, from the outputs by name over all samples and the labels."""

AGREEMENT = "top-1 agreement"


@dataclass(frozen=True)
class Metric:
    """A figure of a model on samples, the larger the better.

    Attributes
    ----------
    name
        What reports call it.
    function
        Returns it; None for the agreement with the original's largest output, or, where the output is no vector of
        classes, the mean cosine similarity to the original's.
    """

    name: str = AGREEMENT
    function: MetricFunction | None = None

    def __call__(self, outputs: Mapping[str, Array], labels: npt.NDArray[np.int64] | None) -> float:
        """Return the figure of the user's function.

        Raises
        ------
        UsageError
            If the function raises, or returns anything but one finite number.
        """
        if self.function is None:
            raise ValueError("The agreement compares two models; it is no function of one.")
        try:
            value = self.function(outputs, labels)
        except Exception as error:  # the user's code may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(f"The metric {self.name!r} raised {reason}; correct the function.") from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(
                f"The metric {self.name!r} returned {value!r}; it must return one finite number, the larger the better."
            )
        return number


def load_metric(text: str) -> Metric:
    """Return the metric that ``file.py:function`` names.

    Raises
    ------
    UsageError
        If the file or the function is missing, or the file does not run.
    """
    path_text, separator, name = text.rpartition(":")
    path = Path(path_text)
    if not separator or not name.isidentifier() or path.suffix != ".py":
        raise UsageError(f"The metric {text!r} names no function; write it as file.py:function.")
    if not path.is_file():
        raise UsageError(f"The metric's file {path_text!r} does not exist; check the path.")
    try:
        module = import_file(path, "metric")
    except Exception as error:  # the user's code may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"The metric's file {path_text!r} does not run: {reason}; correct it.") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UsageError(f"The metric's file {path_text!r} has no function {name!r}{closest(name, known)}.")
    return Metric(name, function)


def comparison_by(
    metric: Metric, original: onnx.ModelProto, output: str, samples: Samples, options: RuntimeOptions
) -> Callable[[onnx.ModelProto], tuple[float, float]]:
    """Return a function from a pruned model to the metric of the original, which runs once, and of that model.

    Parameters
    ----------
    metric
        The metric.
    original
        The original.
    output
        The tensor that top-1 agreement is of.
    samples
        Samples, with labels where the user's function wants them.
    options
        Provider and threads.

    Raises
    ------
    ModelError
        If a model does not run; also by the function.
    UsageError
        If the user's function raises or returns no number; also by the function.
    """
    if metric.function is None:
        before = run_output(original, output, samples, options)
        return lambda pruned: (1.0, agreement(before, run_output(pruned, output, samples, options)))
    figure = metric(_outputs(original, samples, options), samples.labels)
    return lambda pruned: (figure, metric(_outputs(pruned, samples, options), samples.labels))


def agreement(before: Array, after: Array) -> float:
    """Return the share of samples with the same largest class, or the mean cosine similarity of other outputs."""
    if before.ndim == 2 and before.shape[1] > 1:
        return float((before.argmax(axis=1) == after.argmax(axis=1)).mean())
    return mean_cosine(before, after)


def _outputs(model: onnx.ModelProto, samples: Samples, options: RuntimeOptions) -> dict[str, Array]:
    session = Session(model, options)
    parts = [session.run(feeds) for feeds in samples.batches(BATCH_SIZE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
