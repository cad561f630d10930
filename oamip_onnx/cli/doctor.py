"""`oamip doctor`: what is installed, what works, and which widths pay on this machine."""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.rows import print_rows, print_title
from oamip_onnx.cli.streams import check_json_target, messages, output, write_json
from oamip_onnx.config import PruneConfig
from oamip_onnx.doctor import examine
from oamip_onnx.report.doctor import AlignmentRecord, CheckRecord, DoctorReport

EPILOG = "Example: oamip doctor --json doctor.json"


@app.command(epilog=EPILOG)
def doctor(
    no_measure: Annotated[bool | None, typer.Option("--no-measure", help="Do not time which widths pay.")] = None,
    seconds: Annotated[float, typer.Option(help="Time the widths about so long.", min=0.5, max=600.0)] = 4.0,
    json_path: options.Json = None,
) -> None:
    """Check what works here, and which widths pay.

    Looks at libraries, providers, solvers, extras, converters, cache and CPU. Ends with 1 if something that every run needs does not work.
    """
    check_json_target(json_path)
    console = messages()
    if console.is_terminal and not no_measure:
        console.print(f"Starting providers, solving, and timing widths for about {seconds:g} seconds …")
    found = examine(measure=not no_measure, seconds=seconds)
    write_json(found.model_dump_json(indent=2), json_path)
    if json_path != "-":
        show(found, output())
    if not found.healthy:
        raise typer.Exit(1)


def show(found: DoctorReport, console: Console) -> None:
    """Print the report on one page."""
    _section(console, "Libraries", [(name, version) for name, version in found.packages.items()])
    _section(console, "Providers of ONNX Runtime", map(_checked, found.providers))
    _section(console, "Solvers", map(_checked, found.solvers))
    extras = [
        (extra.name, _versions(extra.packages) if extra.installed else f"missing: {extra.command}")
        for extra in found.extras
    ]
    _section(console, "Extras", extras)
    converters = [(c.name, "usable" if c.usable else c.detail) for c in found.converters]
    _section(console, "Converters to ONNX", converters or [("none", "")])
    cpu = found.cpu
    cores = f"{cpu.logical_cores} logical cores" + (f", {cpu.physical_cores} physical" if cpu.physical_cores else "")
    machine = [
        ("system", found.operating_system),
        ("CPU", cpu.model),
        ("cores", f"{cores}; load {cpu.load:.2f}"),
        ("vectors", " ".join(cpu.vector_extensions) or "unknown"),
        ("cache", _cache(found)),
    ]
    _section(console, "Machine", machine)
    if found.alignment:
        _section(console, "Widths: time per channel, relative to multiples of 32", map(_alignment, found.alignment))
        for line in _advice(found.alignment):
            console.print(line, markup=False)
    broken = [check.name for check in [*found.providers, *found.solvers] if check.needed and not check.works]
    console.print(
        f"Not well: {', '.join(broken)} does not work." if broken else "Everything that is needed works.",
        style="bold",
        markup=False,
    )


def _section(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    print_title(console, title)
    print_rows(console, rows)


def _checked(check: CheckRecord) -> tuple[str, str]:
    name = check.name.removesuffix("ExecutionProvider")
    version = f" {check.version}" if check.version else ""
    needed = " (needed)" if check.needed else ""
    return name, f"works{version}{needed}" if check.works else f"does not work{version}{needed}: {check.detail}"


def _versions(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _cache(found: DoctorReport) -> str:
    cache = found.cache
    if cache.path is None:
        return "none: there is no home folder; set OAMIP_CACHE_DIR"
    state = "writable" if cache.writable else "not writable: solved programs are not kept"
    size = f"{cache.size_bytes / 1e6:.1f} MB" if cache.exists else "not made yet"
    return f"{cache.path} ({size}, {state})"


def _alignment(found: AlignmentRecord) -> tuple[str, str]:
    costs = ", ".join(f"{multiple}: {cost:.2f}" for multiple, cost in found.relative.items())
    return found.operator, f"{costs} ({found.runs} runs)"


def _advice(alignment: list[AlignmentRecord]) -> list[str]:
    """Return what the measurement says about `--round-to`."""
    multiple = max(found.multiple for found in alignment)
    usual = PruneConfig.model_fields["round_to"].default
    fits = f"Multiples of {multiple} cost within 5 % of multiples of 32 here"
    lines = [f"{fits}; prune with --round-to {multiple} (by default {usual})."]
    if not all(found.is_sure for found in alignment):
        lines.append(
            "Two halves of the measurement disagree on that: the machine is busy, or a multiple is on the edge."
        )
    return lines
