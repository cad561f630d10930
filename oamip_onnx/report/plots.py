"""Plots as SVG, by matplotlib."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from oamip_onnx.errors import MissingExtraError
from oamip_onnx.report.schema import GroupRecord, ModelRecord, Result, SolverRecord
from oamip_onnx.report.scores import FrontReport

# Colours that stand for the page's own, which follow the reader's choice of light or dark.
_INK, _FAINT, _ORIGINAL, _PRUNED, _REMOVED = "#010203", "#020304", "#030405", "#040506", "#050607"
_VARIABLES = {
    _INK: "currentColor",
    _FAINT: "var(--line)",
    _ORIGINAL: "var(--original)",
    _PRUNED: "var(--pruned)",
    _REMOVED: "var(--removed)",
}
# The same, for a file of its own.
_ON_WHITE = {_INK: "#1f2933", _FAINT: "#cbd2d9", _ORIGINAL: "#64748b", _PRUNED: "#0f766e", _REMOVED: "#c2410c"}

_BINS = 24


def front_plot(report: FrontReport, *, themed: bool = False) -> str:
    """Return the front as SVG: the share of units kept against the loss expected and the loss measured.

    Parameters
    ----------
    report
        The front.
    themed
        Whether the colours are those of the page around it.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    points = sorted(report.points, key=lambda p: p.share_kept)
    shares = [p.share_kept for p in points]

    def draw(axes: Any) -> None:
        axes.plot(shares, [p.program_loss for p in points], "o--", color=_ORIGINAL, label="expected by the program")
        axes.plot(shares, [p.measured_loss for p in points], "o-", color=_PRUNED, label="measured, masked model")
        axes.set(xlim=(0, 1), xlabel="Share of units kept", ylabel="Loss", title=f"Front of {report.importance}")
        axes.legend(frameon=False, labelcolor=_INK)

    return _plot(draw, themed=themed)


def latency_plot(original: ModelRecord, pruned: ModelRecord) -> str | None:
    """Return the distributions of both models' run times, for the page; None where they were not measured."""
    if original.latency_ms is None or pruned.latency_ms is None:
        return None
    series = [(original.latency_ms, _ORIGINAL, "original"), (pruned.latency_ms, _PRUNED, "pruned")]
    if not all(latency.percentiles for latency, _, _ in series):
        return None

    def draw(axes: Any) -> None:
        for latency, color, label in series:
            shares = np.linspace(0, 100, len(latency.percentiles))
            axes.plot(latency.percentiles, shares, color=color, label=f"{label}, {latency.runs:,} runs", lw=1.8)
            axes.axvline(latency.p50, color=color, lw=0.8, ls=":")
        # The slowest percent is as long as the rest together; the axis ends where it begins.
        least = min(latency.percentiles[0] for latency, _, _ in series)
        most = max(latency.p99 for latency, _, _ in series)
        axes.set(xlim=(0.97 * least, 1.05 * most), ylim=(0, 100), xlabel="Milliseconds a run", ylabel="Runs as fast, %")
        axes.legend(frameon=False, labelcolor=_INK, loc="lower right")

    return _plot(draw, themed=True)


def operators_plot(original: ModelRecord, pruned: ModelRecord) -> str | None:
    """Return the time of both models by operator, for the page; None where they were not profiled."""
    before = {one.operator: one.milliseconds for one in original.operators}
    after = {one.operator: one.milliseconds for one in pruned.operators}
    if not before or not after:
        return None
    names = sorted({*before, *after}, key=lambda name: max(before.get(name, 0.0), after.get(name, 0.0)))
    places = np.arange(len(names))

    def draw(axes: Any) -> None:
        axes.barh(places + 0.2, [before.get(n, 0.0) for n in names], 0.38, color=_ORIGINAL, label="original")
        axes.barh(places - 0.2, [after.get(n, 0.0) for n in names], 0.38, color=_PRUNED, label="pruned")
        axes.set(xlabel="Milliseconds a run")
        axes.set_yticks(places, names, parse_math=False)
        axes.legend(frameon=False, labelcolor=_INK, loc="lower right")

    return _plot(draw, themed=True, height=1.0 + 0.36 * len(names))


def importance_plot(group: GroupRecord) -> str:
    """Return the distribution of a group's scores, those of removed units in another colour, for the page."""
    values = np.array(group.importance)
    stays = np.zeros(len(values), dtype=np.bool_)
    stays[group.kept] = True
    edges = np.histogram_bin_edges(values, bins=_BINS)
    threshold = separation(group)

    def draw(axes: Any) -> None:
        kept, removed = (np.histogram(values[which], edges)[0] for which in (stays, ~stays))
        axes.stairs(removed + kept, edges, fill=True, color=_PRUNED)
        axes.stairs(removed, edges, fill=True, color=_REMOVED)
        if threshold is not None:
            axes.axvline(threshold, color=_INK, lw=0.8, ls="--")
        axes.set_yticks([])
        axes.set_xticks([edges[0], edges[-1]], [f"{edges[0]:.3g}", f"{edges[-1]:.3g}"])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)

    return _plot(draw, themed=True, width=2.6, height=1.05)


def separation(group: GroupRecord) -> float | None:
    """Return the score between the highest that went and the lowest that stayed.

    None where nothing or everything went, or where units of several blocks overlap.
    """
    kept = set(group.kept)
    stayed = [value for unit, value in enumerate(group.importance) if unit in kept]
    gone = [value for unit, value in enumerate(group.importance) if unit not in kept]
    if not stayed or not gone or max(gone) > min(stayed):
        return None
    return (max(gone) + min(stayed)) / 2


def search_plot(record: SolverRecord) -> str | None:
    """Return incumbent and bound of a search over time, for the page; None for an engine that does not search."""
    if len(record.trace) < 2:
        return None

    def draw(axes: Any) -> None:
        found = [(p.seconds, p.incumbent) for p in record.trace if p.incumbent is not None]
        proven = [(p.seconds, p.bound) for p in record.trace if p.bound is not None]
        for points, color, label in ((found, _PRUNED, "incumbent"), (proven, _ORIGINAL, "proven bound")):
            if points:
                axes.step(*zip(*points, strict=True), where="post", color=color, label=label)
        axes.set(xlabel="Seconds", ylabel="Objective")
        axes.legend(frameon=False, labelcolor=_INK)

    return _plot(draw, themed=True)


def trade_off_plot(results: Sequence[Result], horizontal: str) -> str | None:
    """Return what several results keep against what they cost, for the page; None where fewer than two have both.

    Parameters
    ----------
    results
        Results of the same original.
    horizontal
        ``macs`` or ``latency``.
    """
    name, kept_of = _quality(results)
    points = []
    for result in results:
        latency = result.pruned.latency_ms
        latency_ms = None if latency is None else latency.p50
        cost = result.pruned.macs / 1e6 if horizontal == "macs" else latency_ms
        quality = kept_of(result)
        if cost is not None and quality is not None:
            points.append((cost, quality))
    if len(points) < 2:
        return None

    def draw(axes: Any) -> None:
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=_PRUNED)
        label = "Million MACs a run" if horizontal == "macs" else "Latency p50, milliseconds"
        axes.set(xlabel=label, ylabel=name)
        first = results[0]
        if first.drift.metric is not None and name == first.drift.metric.name.capitalize():
            axes.axhline(first.drift.metric.original, color=_ORIGINAL, lw=0.8, ls="--", label="original")
            axes.legend(frameon=False, labelcolor=_INK)

    return _plot(draw, themed=True)


def _quality(results: Sequence[Result]) -> tuple[str, Callable[[Result], float | None]]:
    """Return the name of the best measure that all results have, and how to read it."""
    metrics = {result.drift.metric.name if result.drift.metric else None for result in results}
    if len(metrics) == 1 and None not in metrics:
        return str(metrics.pop()).capitalize(), lambda r: r.drift.metric.pruned if r.drift.metric else None
    if all(result.drift.top1_agreement is not None for result in results):
        return "Top-1 agreement", lambda r: r.drift.top1_agreement
    return "Cosine with the original", lambda r: r.drift.cosine


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


def _plot(draw: Callable[[Any], None], *, themed: bool, width: float = 6.4, height: float = 3.6) -> str:
    """Return a plot as SVG; the same plot gives the same bytes: no date, no random identifiers."""
    require_plots()
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    colors = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    settings = {"svg.hashsalt": "oamip", "svg.fonttype": "none", "text.parse_math": False, "axes.titlesize": 11}
    with mpl.rc_context({**colors, **settings, "grid.color": _FAINT}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    for stand_in, color in (_VARIABLES if themed else _ON_WHITE).items():
        svg = svg.replace(stand_in, color)
    return svg if not themed else _inline(svg)


def _inline(svg: str) -> str:
    """Return an SVG file as part of a page: no prologue, no metadata, the page's font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "system-ui, sans-serif", svg)
