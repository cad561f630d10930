"""What `doctor` reports."""

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from rich.text import Text

from oamip_onnx.config import PruneConfig
from oamip_onnx.report.grid import Labelled
from oamip_onnx.report.schema import SCHEMA_VERSION, Record
from oamip_onnx.report.shown import Part, ShownInParts, byte_size


class CheckRecord(Record):
    """One provider or solver that was tried: whether it is needed, whether it works, and the reason where not."""

    name: str
    version: str
    needed: bool
    works: bool
    detail: str

    def row(self) -> tuple[str, str]:
        """Return the short name, and whether it works."""
        name = self.name.removesuffix("ExecutionProvider")
        version = f" {self.version}" if self.version else ""
        needed = " (needed)" if self.needed else ""
        return name, f"works{version}{needed}" if self.works else f"does not work{version}{needed}: {self.detail}"


class ExtraRecord(Record):
    """One optional set of packages: their versions, None where one is missing, and the command that installs it."""

    name: str
    installed: bool
    packages: dict[str, str | None]
    command: str

    def row(self) -> tuple[str, str]:
        """Return the name, and its packages or how to get them."""
        versions = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        return self.name, versions if self.installed else f"missing: {self.command}"


class ConverterRecord(Record):
    """One converter to ONNX that a package registers: its extra, and why it cannot be used where it cannot."""

    name: str
    package: str
    extra: str
    usable: bool
    detail: str


class CacheRecord(Record):
    """The folder of solved programs; None where there is no home folder."""

    path: str | None
    exists: bool
    writable: bool
    size_bytes: int
    # Why it cannot be looked at: for the page, not part of the JSON.
    detail: SkipJsonSchema[str] = Field(default="", exclude=True)

    def describe(self) -> str:
        """Return where it is, and its state."""
        if self.path is None:
            return "none: there is no home folder; set OAMIP_CACHE_DIR"
        if self.detail:
            return f"{self.path} (not writable: {self.detail})"
        state = "writable" if self.writable else "not writable: solved programs are not kept"
        return f"{self.path} ({byte_size(self.size_bytes) if self.exists else 'not made yet'}, {state})"


class CpuRecord(Record):
    """The processor; `physical_cores` is None where the system does not tell, `load` is the mean of one minute."""

    model: str
    logical_cores: int
    physical_cores: int | None
    vector_extensions: list[str]
    load: float


class AlignmentRecord(Record):
    """Which widths pay: the smallest multiple, and the time per channel by multiple relative to multiples of 32."""

    operator: str
    multiple: int
    relative: dict[str, float]
    runs: int
    is_sure: bool

    def row(self) -> tuple[str, str]:
        """Return the operator, and what each multiple costs."""
        costs = ", ".join(f"{multiple}: {cost:.2f}" for multiple, cost in self.relative.items())
        return self.operator, f"{costs} ({self.runs} runs)"


class DoctorReport(Record, ShownInParts):
    """What is installed, what works, and what this machine likes; `healthy` where everything needed works."""

    schema_version: int = SCHEMA_VERSION
    healthy: bool
    operating_system: str
    packages: dict[str, str]
    providers: list[CheckRecord]
    solvers: list[CheckRecord]
    extras: list[ExtraRecord]
    converters: list[ConverterRecord]
    cache: CacheRecord
    cpu: CpuRecord
    alignment: list[AlignmentRecord]

    def parts(self) -> list[Part]:
        """Return the report on one page."""
        converters = [(one.name, "usable" if one.usable else one.detail) for one in self.converters]
        parts: list[Part] = [
            Labelled("Libraries", tuple(self.packages.items())),
            Labelled("Providers of ONNX Runtime", tuple(check.row() for check in self.providers)),
            Labelled("Solvers", tuple(check.row() for check in self.solvers)),
            Labelled("Extras", tuple(extra.row() for extra in self.extras)),
            Labelled("Converters to ONNX", tuple(converters or [("none", "")])),
            self._machine(),
        ]
        if self.alignment:
            title = "Widths: time per channel, relative to multiples of 32"
            parts.append(Labelled(title, tuple(found.row() for found in self.alignment)))
            parts += map(Text, self._advice())
        broken = [check.name for check in [*self.providers, *self.solvers] if check.needed and not check.works]
        verb = "does" if len(broken) == 1 else "do"
        verdict = f"Not well: {', '.join(broken)} {verb} not work." if broken else "Everything that is needed works."
        return [*parts, Text(verdict, style="bold")]

    def _machine(self) -> Labelled:
        cpu = self.cpu
        physical = f", {cpu.physical_cores} physical" if cpu.physical_cores else ""
        rows = (
            ("system", self.operating_system),
            ("CPU", cpu.model),
            ("cores", f"{cpu.logical_cores} logical cores{physical}; load {cpu.load:.2f}"),
            ("vectors", " ".join(cpu.vector_extensions) or "unknown"),
            ("cache", self.cache.describe()),
        )
        return Labelled("Machine", rows)

    def _advice(self) -> list[str]:
        """Return what the measurement says about `--round-to`."""
        multiple = max(found.multiple for found in self.alignment)
        usual = PruneConfig.model_fields["round_to"].default
        fits = f"Multiples of {multiple} cost within 5 % of multiples of 32 here"
        if all(found.is_sure for found in self.alignment):
            return [f"{fits}; prune with --round-to {multiple} (by default {usual})."]
        doubt = "two halves of the measurement disagree on that: the machine is busy, or a multiple is on the edge"
        return [
            f"{fits}, but {doubt}. Measure again when it is quiet; until then keep --round-to {usual}, the default."
        ]
