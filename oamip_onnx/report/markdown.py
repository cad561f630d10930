"""The result as Markdown, for the description of a pull request."""

from collections.abc import Sequence

from oamip_onnx.report.schema import Result
from oamip_onnx.report.table import rows, summary_lines


def report_markdown(result: Result, *, title: str = "Pruning report") -> str:
    """Return the before/after table, the widths and the notes as GitHub's Markdown.

    Examples
    --------
    >>> import oamip_onnx
    >>> from oamip_onnx.report import report_markdown
    >>> result = oamip_onnx.prune("model.onnx", "calibration.npz", importance="magnitude", bench=False)
    >>> print(report_markdown(result.report).splitlines()[0])
    # Pruning report
    """
    parts = [
        f"# {escape(title)}",
        _table(
            ["", "Original", "Pruned", "Change"], [[r.quantity, r.original, r.pruned, r.change] for r in rows(result)]
        ),
        "\n".join(escape(line) for line in summary_lines(result)),
        "## Widths",
        _table(
            ["Group", "Before", "After", "Left"],
            [[g.name, str(g.before), str(g.after), f"{g.after / g.before:.0%}"] for g in result.groups],
        ),
    ]
    if result.notes:
        parts += ["## Notes", "\n".join(f"* {escape(note)}" for note in result.notes)]
    if result.command:
        parts += ["## Made by", f"```sh\n{result.command}\n```"]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return a text that Markdown shows as it is, inside a table as well."""
    for sign in "\\`*_<>|[]#":
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", " ")


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    aligned = [":--", *["--:"] * (len(head) - 1)]
    lines = [head, aligned, *([escape(cell) for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
