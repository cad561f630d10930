"""Plots as SVG, by matplotlib."""

import io
from typing import Any

from oamip_onnx.errors import MissingExtraError
from oamip_onnx.report.scores import FrontReport


def front_plot(report: FrontReport) -> str:
    """Return the front as SVG: the share of units kept against the loss expected and the loss measured.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    figure, axes = _figure("Share of units kept", "Loss")
    points = sorted(report.points, key=lambda p: p.share_kept)
    shares = [p.share_kept for p in points]
    axes.plot(shares, [p.program_loss for p in points], "o--", label="expected by the program")
    axes.plot(shares, [p.measured_loss for p in points], "o-", label="measured, masked model")
    axes.set_xlim(0, 1)
    axes.legend(frameon=False)
    axes.set_title(f"Front of {report.importance}")
    return _svg(figure)


def require_plots() -> None:
    """Raise if plots cannot be drawn.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415, F401 - an extra, and slow to import
    except ImportError as error:
        raise MissingExtraError(
            "A plot needs matplotlib; install it with: pip install 'oamip-onnx[report]'."
        ) from error


def _figure(horizontal: str, vertical: str) -> tuple[Any, Any]:
    require_plots()
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import

    buffer = io.StringIO()
    # The same plot gives the same bytes: no date, no random identifiers.
    with mpl.rc_context({"svg.hashsalt": "oamip", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
