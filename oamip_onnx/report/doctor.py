"""What `doctor` reports, as data."""

from oamip_onnx.report.schema import SCHEMA_VERSION, Record


class CheckRecord(Record):
    """One provider or solver that was tried: whether it is needed, whether it works, and the reason where not."""

    name: str
    version: str
    needed: bool
    works: bool
    detail: str


class ExtraRecord(Record):
    """One optional set of packages: their versions, None where one is missing, and the command that installs it."""

    name: str
    installed: bool
    packages: dict[str, str | None]
    command: str


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


class DoctorReport(Record):
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
