"""Activations recorded in a stream: one batch at a time, never all of them."""

from collections.abc import Iterator, Sequence

import onnx

from oamip_onnx.calibration.samples import Samples
from oamip_onnx.model import Array, with_outputs
from oamip_onnx.runtime import RuntimeOptions, Session

BATCH_SIZE = 100


class ActivationStream:
    """Named tensors of a model, over samples.

    Parameters
    ----------
    proto
        The model.
    tensors
        Names of the tensors to record.
    options
        Provider and threads.
    """

    def __init__(self, proto: onnx.ModelProto, tensors: Sequence[str], options: RuntimeOptions | None = None) -> None:
        self.tensors = tuple(dict.fromkeys(tensors))
        self._session = Session(with_outputs(proto, self.tensors), options)

    def batches(self, samples: Samples, size: int = BATCH_SIZE) -> Iterator[dict[str, Array]]:
        """Yield the tensors of each batch by name, in the order of the samples."""
        for feeds in samples.batches(size):
            yield self._session.run(feeds, self.tensors)
