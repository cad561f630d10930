"""Second moments of what layers read, gathered from the samples and kept between uses."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from oamip_onnx.calibration import ActivationStream, Samples, draw_rows, moments, with_ones
from oamip_onnx.importance.surgeon import Reader
from oamip_onnx.model import Model, TensorType
from oamip_onnx.runtime import RuntimeOptions

FloatArray = npt.NDArray[np.float64]

# Output positions of one sample that enter the moments on average: enough for several a feature, and no fewer and no
# more than these. On four networks, 50 and 200 choose equally good units.
_POSITIONS_A_FEATURE, _FEWEST_POSITIONS, _MOST_POSITIONS = 4, 50, 200

# Samples of one run, and the bytes that the recorded activations of a run may take: fewer samples where they are large.
_RUN_SAMPLES, _RUN_BYTES = 64, 1 << 28


class MomentStore:
    """Moments of the layers of one model on one set of samples, as far as memory allows; the others are gathered anew.

    Parameters
    ----------
    limit_bytes
        What the moments that are kept may take together.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self._left = limit_bytes
        self._kept: dict[int, FloatArray] = {}

    def get(self, reader: Reader) -> FloatArray | None:
        """Return the moments of what a layer reads, or None; they are not to be changed."""
        return self._kept.get(reader.node)

    def put(self, reader: Reader, found: FloatArray) -> None:
        """Keep moments, if there is room."""
        if found.nbytes <= self._left and reader.node not in self._kept:
            self._left -= found.nbytes
            self._kept[reader.node] = found


def gather_moments(
    model: Model,
    types: Mapping[str, TensorType],
    readers: Sequence[Reader],
    samples: Samples,
    options: RuntimeOptions,
    seed: int,
) -> list[FloatArray]:
    """Return XᵀX of what each layer reads, (features + 1, features + 1), from one pass over the samples.

    Parameters
    ----------
    model, types
        The model, and the types of its tensors in one run.
    readers
        The layers.
    samples
        Calibration samples.
    options
        Provider and threads.
    seed
        Seed of the draw of positions, which differs for every layer and is the same in every pass.
    """
    sums = [np.zeros((len(reader.matrix),) * 2) for reader in readers]
    generators = [np.random.default_rng([seed, reader.node]) for reader in readers]
    stream = ActivationStream(model.proto, [reader.tensor for reader in readers], options)
    run_bytes = sum(types[n].dtype.itemsize * math.prod(types[n].shape) for n in {r.tensor for r in readers})
    size = samples.run_size or int(np.clip(_RUN_BYTES // max(run_bytes, 1), 1, min(_RUN_SAMPLES, samples.count)))
    for batch in stream.batches(samples, size):
        for number, reader in enumerate(readers):
            data = batch[reader.tensor]
            wanted = _POSITIONS_A_FEATURE * len(reader.matrix) / samples.count
            limit = size * int(np.clip(wanted, _FEWEST_POSITIONS, _MOST_POSITIONS))
            chosen = draw_rows(reader.layout.count(data), limit, generators[number])
            sums[number] += moments(with_ones(reader.layout.rows(data, chosen)))[0]
    return sums
