"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import count
from typing import Any

from oamip_onnx.errors import DataError, MissingExtraError
from oamip_onnx.report.network import Gutter, NetworkRow, network_rows
from oamip_onnx.report.plots import (
    front_plot,
    importance_plot,
    latency_plot,
    operators_plot,
    require_plots,
    search_plot,
    separation,
    trade_off_plot,
)
from oamip_onnx.report.schema import GroupRecord, Result
from oamip_onnx.report.scores import FrontReport
from oamip_onnx.report.table import headlines, rows, summary_lines

_TEMPLATE = "page.html.jinja"

# Scores whose spread is a smaller share of the largest are equal.
_EQUAL = 1e-9

# Height of a row, and distance of lanes, in the drawing's own units (CSS pixels).
_ROW_HEIGHT, _LANE_WIDTH, _MARGIN = 30, 14, 10


@dataclass(frozen=True)
class _Importance:
    """One group's distribution of scores."""

    group: GroupRecord
    threshold: float | None
    plot: str


def require_page() -> None:
    """Raise if the page cannot be made.

    Raises
    ------
    MissingExtraError
        If Jinja or matplotlib is not installed.
    """
    require_plots()
    try:
        import jinja2  # noqa: PLC0415, F401 - an extra
    except ImportError as error:
        raise MissingExtraError(
            "A report page needs Jinja2; install it with: pip install 'oamip-onnx[report]'."
        ) from error


def report_page(result: Result, others: Sequence[Result | FrontReport] = (), *, title: str = "") -> str:
    """Return the page.

    Parameters
    ----------
    result
        The result that the page shows in full.
    others
        More results of the same original, for what is kept against what it costs, and fronts of ``oamip score --path``.
    title
        The page's title; "Pruning report" by default.

    Raises
    ------
    DataError
        If another result is of another original.
    MissingExtraError
        If Jinja or matplotlib is not installed.
    """
    require_page()
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - an extra
    from markupsafe import Markup  # noqa: PLC0415 - comes with Jinja

    results = [result, *(other for other in others if isinstance(other, Result))]
    _check_same_original(results)
    numbers = count(1)

    def picture(svg: str | None) -> Any:
        """Return a plot whose identifiers no other plot of the page has."""
        return None if svg is None else Markup(_with_prefix(svg, f"p{next(numbers)}-"))  # noqa: S704 - our own plot

    network = network_rows(result)
    text = resources.files("oamip_onnx.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["markup"] = Markup
    return environment.from_string(text).render(
        title=title or "Pruning report",
        result=result,
        headlines=headlines(result),
        table=rows(result),
        summary=summary_lines(result),
        network=network,
        lane_count=max((row.gutter.column + 1 for row in network), default=1),
        gutter=_gutter,
        latency=picture(latency_plot(result.original, result.pruned)),
        operators=picture(operators_plot(result.original, result.pruned)),
        importances=[_Importance(g, separation(g), picture(importance_plot(g))) for g in _scored(result)],
        trade_offs=[p for axis in ("macs", "latency") if (p := picture(trade_off_plot(results, axis)))],
        fronts=[picture(front_plot(other, themed=True)) for other in others if isinstance(other, FrontReport)],
        searches=[(s, p) for s in result.solver if (p := picture(search_plot(s)))],
    )


def _check_same_original(results: Sequence[Result]) -> None:
    first = results[0].original
    for number, other in enumerate(results[1:], start=2):
        if (other.original.parameters, other.original.macs) != (first.parameters, first.macs):
            raise DataError(
                f"Result {number} is of another original ({other.original.parameters:,} parameters and "
                f"{other.original.macs:,} MACs against {first.parameters:,} and {first.macs:,}); a report compares "
                "results of one model."
            )


def _scored(result: Result) -> Iterator[GroupRecord]:
    """Yield the groups whose units have scores that differ: proofs and equal scores have no distribution."""
    if result.lossless is None:
        yield from (group for group in result.groups if _has_spread(group.importance))


def _has_spread(values: Sequence[float]) -> bool:
    """Return whether scores differ by more than rounding."""
    largest = max(map(abs, values), default=0.0)
    return max(values, default=0.0) - min(values, default=0.0) > _EQUAL * largest


def _with_prefix(svg: str, prefix: str) -> str:
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)


def _gutter(row: NetworkRow, lane_count: int) -> str:
    """Return the drawing of the lanes beside a row, as SVG."""
    gutter: Gutter = row.gutter
    middle, node = _ROW_HEIGHT / 2, _place(gutter.column)
    paths = [f"M{_place(lane)} 0V{_ROW_HEIGHT}" for lane in gutter.through]
    for lane in gutter.entering:
        x = _place(lane)
        paths.append(f"M{x} 0V{middle}" if x == node else f"M{x} 0C{x} {middle} {node} 0 {node} {middle}")
    if gutter.leaving:
        paths.append(f"M{node} {middle}V{_ROW_HEIGHT}")
    width = 2 * _MARGIN + (lane_count - 1) * _LANE_WIDTH
    kind = "pin" if row.pin else "plain" if row.share_left in {None, 1.0} else "cut"
    shape = (
        f'<rect class="{kind}" x="{node - 5}" y="{middle - 5}" width="10" height="10"/>'
        if row.pin
        else f'<circle class="{kind}" cx="{node}" cy="{middle}" r="5"/>'
    )
    lines = f'<path d="{"".join(paths)}"/>' if paths else ""
    return f'<svg width="{width}" height="{_ROW_HEIGHT}" aria-hidden="true">{lines}{shape}</svg>'


def _place(lane: int) -> int:
    return _MARGIN + lane * _LANE_WIDTH
