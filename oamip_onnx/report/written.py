"""A model with the report on how it was made: what `prune`, `finetune` and `transfer` return."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import onnx
from rich.table import Table

from oamip_onnx.model import save_model
from oamip_onnx.report.shown import Part, Shown

R = TypeVar("R", bound=Shown)


@dataclass(frozen=True)
class ModelWithReport(Shown, Generic[R]):
    """A model and its report, which rich's `print` and notebooks show.

    Attributes
    ----------
    model
        The model.
    report
        Everything measured, as data; `report.model_dump_json()` is the result JSON.
    external_data
        Whether weights are written to a file of their own.
    """

    model: onnx.ModelProto = field(repr=False)
    report: R
    external_data: bool = field(default=False, repr=False)

    def parts(self) -> Sequence[Part]:
        """Return what `print` of rich shows, in order."""
        return self.report.parts()

    def tables(self) -> Sequence[Table]:
        """Return the tables of the report."""
        return self.report.tables()

    def save(self, path: str | Path) -> int:
        """Write the model atomically and return its size in bytes.

        Raises
        ------
        OutputError
            If the target cannot be written.
        """
        return save_model(self.model, Path(path), external_data=self.external_data)
