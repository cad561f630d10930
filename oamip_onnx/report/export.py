"""What `export` reports: sizes, latencies, drift, and what stayed in float32."""

from rich.table import Table
from rich.text import Text

from oamip_onnx.report.schema import SCHEMA_VERSION, DriftRecord, LatencyRecord, MetricRecord, Record, SpeedupRecord
from oamip_onnx.report.shown import Part, ShownInParts, byte_size, filled, milliseconds
from oamip_onnx.verify import Drift


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
        before, after, drift = self.original, self.exported, self.drift
        left = f"{100 * after.size_bytes / before.size_bytes:.1f} % left"
        rows = [("Size", byte_size(before.size_bytes), byte_size(after.size_bytes), left)]
        if before.latency_ms and after.latency_ms and self.speedup:
            first_ms, second_ms = (milliseconds(found.p50) for found in (before.latency_ms, after.latency_ms))
            rows.append(("Latency p50", f"{first_ms} ms", f"{second_ms} ms", _speedup(self.speedup)))
        if drift is not None:
            if drift.metric is not None:
                first, second = drift.metric.original, drift.metric.pruned
                name = drift.metric.name.capitalize()
                rows.append((name, f"{first:.4f}", f"{second:.4f}", f"{100 * (second - first):+.2f} points"))
            if drift.top1_agreement is not None:
                rows.append(("Top-1 agreement", "", f"{drift.top1_agreement:.4f}", ""))
            rows.append(("Drift: cosine", "", f"{drift.cosine:.4f}", f"SQNR {drift.sqnr_db:.1f} dB"))
        return filled(["", "Original", self.format, "Change"], rows)


def _speedup(found: SpeedupRecord) -> str:
    """Return the speed-up with its interval, in the words of the before/after table."""
    if not found.significant:
        return f"no significant change [{found.low:.2f}, {found.high:.2f}]"
    if found.median < 1:
        return f"{1 / found.median:.2f}× slower [{1 / found.high:.2f}, {1 / found.low:.2f}]"
    return f"{found.median:.2f}× faster [{found.low:.2f}, {found.high:.2f}]"


def drift_record(drift: Drift, data: str) -> DriftRecord:
    """Return the record of a drift that was measured on ``evaluation`` or ``calibration`` samples."""
    metric = None
    if drift.accuracy_original is not None and drift.accuracy_pruned is not None:
        metric = MetricRecord(name="accuracy", original=drift.accuracy_original, pruned=drift.accuracy_pruned)
    return DriftRecord(
        cosine=drift.cosine,
        sqnr_db=drift.sqnr_db,
        top1_agreement=drift.top1_agreement,
        metric=metric,
        samples=drift.samples,
        data=data,
    )
