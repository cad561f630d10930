"""`oamip report`: the result of a run as a page, or as Markdown."""

from pathlib import Path
from typing import Annotated

import typer

from oamip_onnx.cli.app import app
from oamip_onnx.cli.streams import check_targets, output, write_result
from oamip_onnx.errors import UsageError
from oamip_onnx.model import check_writable
from oamip_onnx.report import read_report, read_result, report_markdown, report_page, require_page

EPILOG = "Example: oamip report result.json --output report.html"


@app.command(epilog=EPILOG)
def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="What oamip prune --json has written.")],
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[MORE]...", help="Other results of the same model, or fronts of oamip score --path."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="report.html, or report.md for Markdown.", metavar="PATH")
    ] = None,
    title: Annotated[str | None, typer.Option(help="The page's title.", metavar="TEXT")] = None,
) -> None:
    """Write one page that shows a result.

    It needs no network, no script and no other file.
    """
    target = out or result.with_suffix(".html")
    kind = target.suffix.lower()
    if kind not in {".html", ".htm", ".md"}:
        raise UsageError(f"A report is HTML or Markdown; give --output a name that ends in .html or .md, not {kind!r}.")
    check_writable(target)
    check_targets([result, *(more or ())], [target])
    if kind == ".md" and more:
        raise UsageError("Markdown shows one result; give one, or --output a name that ends in .html.")
    first = read_result(result)
    others = [read_report(path) for path in more or ()]
    if kind == ".md":
        write_result(report_markdown(first, title=title or "Pruning report"), target)
    else:
        require_page()
        write_result(report_page(first, others, title=title or result.stem), target)
    output().print(f"The report is in {target}.", markup=False, soft_wrap=True)
