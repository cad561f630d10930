"""A folder with the report in every form: the page, Markdown, and the result it is made of."""

import tempfile
from pathlib import Path

from oamip_onnx.errors import OutputError
from oamip_onnx.report.markdown import report_markdown
from oamip_onnx.report.page import report_page, require_page
from oamip_onnx.report.schema import Result


def check_report_folder(folder: Path) -> None:
    """Raise unless a report can be put there.

    Raises
    ------
    MissingExtraError
        If the page cannot be made.
    OutputError
        If something is there already, or the folder around it is missing or not writable.
    """
    require_page()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"The report folder {str(folder)!r} exists already; choose another name, or remove it.")
    parent = folder.parent
    if not parent.is_dir():
        raise OutputError(f"The folder {str(parent)!r} for the report does not exist; create it first.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OutputError(f"The folder {str(parent)!r} is not writable: {error.strerror}.") from error


def write_report_folder(result: Result, folder: Path, *, title: str = "") -> None:
    """Write ``report.html``, ``report.md`` and ``result.json`` into a new folder, all or none of them.

    Raises
    ------
    MissingExtraError, OutputError
        As `check_report_folder` does.

    Examples
    --------
    >>> from pathlib import Path
    >>> import oamip_onnx
    >>> from oamip_onnx.report import write_report_folder
    >>> result = oamip_onnx.prune("model.onnx", "calibration.npz", importance="magnitude", bench=False)
    >>> write_report_folder(result.report, Path("report"), title="My model")
    >>> sorted(path.name for path in Path("report").iterdir())
    ['report.html', 'report.md', 'result.json']
    """
    folder = folder.resolve()
    check_report_folder(folder)
    texts = {
        "report.html": report_page(result, title=title),
        "report.md": report_markdown(result, title=title or "Pruning report"),
        "result.json": result.model_dump_json(indent=2) + "\n",
    }
    try:
        with tempfile.TemporaryDirectory(prefix=".oamip-", dir=folder.parent) as near:
            new = Path(near) / folder.name
            new.mkdir()
            for name, text in texts.items():
                (new / name).write_text(text, encoding="utf-8")
            if folder.exists():
                folder.rmdir()  # empty; Windows replaces no folder
            new.replace(folder)
    except OSError as error:
        raise OutputError(f"The report {str(folder)!r} cannot be written: {error.strerror or error}.") from error
