"""What `export` reports: sizes, latencies, drift, and what stayed in float32."""

from rich.table import Table
from rich.text import Text

from oamip_onnx.report.schema import SCHEMA_VERSION, DriftRecord, LatencyRecord, Record, SpeedupRecord
from oamip_onnx.report.shown import Part, ShownInParts, byte_size, filled, milliseconds
from oamip_onnx.report.table import Row, drift_rows, speedup_text


class ExportedFile(Record):
    """A model before or after the export.

    Attributes
    ----------
    path
        Where it is; null for a model that came from memory.
    size_bytes
        Its size with the files beside it that belong to it, in bytes.
    latency_ms
        Its latency; null where it was not measured.
    """

    path: str | None
    size_bytes: int
    latency_ms: LatencyRecord | None = None


class ExportReport(Record, ShownInParts):
    """What an export wrote, and how it compares with the original.

    Attributes
    ----------
    schema_version
        Version of this format.
    format
        The name of the format.
    original, exported
        Size and latency before and after.
    speedup
        How much faster the exported model is; null where latency was not measured.
    drift
        Distance between the outputs; null where ONNX Runtime does not run the format, or nothing could be compared.
    min_sqnr_db
        How close the output was to come to the original's, in decibel; null where that was not measured.
    kept_float32
        The layers that stay in float32 to keep the output close.
    notes
        What a reader should know, as sentences.
    seconds
        Wall-clock seconds by stage.
    environment
        Machine and versions; nothing in it names the machine or its user.
    """

    schema_version: int = SCHEMA_VERSION
    format: str
    original: ExportedFile
    exported: ExportedFile
    speedup: SpeedupRecord | None
    drift: DriftRecord | None
    min_sqnr_db: float | None
    kept_float32: list[str]
    notes: list[str]
    seconds: dict[str, float]
    environment: dict[str, str | int | float]

    def parts(self) -> list[Part]:
        """Return the table, and the layers that stay in float32."""
        parts: list[Part] = [self._table()]
        if self.kept_float32:
            parts.append(Text(f"In float32: {', '.join(self.kept_float32)}."))
        return parts

    def _table(self) -> Table:
        before, after = self.original, self.exported
        left = f"{100 * after.size_bytes / before.size_bytes:.1f} % left"
        rows = [Row("Size", byte_size(before.size_bytes), byte_size(after.size_bytes), left)]
        if before.latency_ms and after.latency_ms and self.speedup:
            first_ms, second_ms = (milliseconds(found.p50) for found in (before.latency_ms, after.latency_ms))
            rows.append(Row("Latency p50", f"{first_ms} ms", f"{second_ms} ms", speedup_text(self.speedup)))
        if self.drift is not None:
            rows += drift_rows(self.drift)
        cells = [(row.quantity, row.original, row.pruned, row.change) for row in rows]
        return filled(["", "Original", self.format, "Change"], cells)
