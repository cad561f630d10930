"""Tables of rows: means, deviations and 95 % intervals over runs, beside the paper's figures where they are known."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.stats import t

from .plan import REFERENCE, Row
from .retraining import SNIP, TRANSFERRED
from .rows import COMMANDS, DECOUPLINGS, EQUAL, METHODS, PLANNED, THRESHOLD, TIMED

# As recalled from the paper, so approximate: its reference, and its subnetwork with the share of parameters removed.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("fc3", "fashion-mnist"): {"reference": 0.877, "removed": 0.68, "masked": 0.80, "tuned": 0.881},
    ("lenet5", "fashion-mnist"): {"reference": 0.897, "removed": 0.178, "masked": 0.877, "tuned": 0.898},
    ("vgg", "cifar10"): {"reference": 0.839, "removed": 0.36, "tuned": 0.853},
}

# The paper's order: what is worse comes first, with the points by which it has to be.
ORDER = (
    ("critical", "masked", "random", "masked", 5.0),
    ("random", "masked", "oamip-paper", "masked", 0.0),
    ("oamip-paper", "masked", "oamip-paper", "tuned", 0.0),
)
CONTROLLED = (
    ("magnitude", "masked", "oamip-paper", "masked", 0.0),
    ("random", "tuned", "oamip-paper", "tuned", 0.0),
    ("magnitude", "tuned", "oamip-paper", "tuned", 0.0),
    ("oamip-paper", "masked", "oamip-rounds", "masked", 0.0),
    ("magnitude", "masked", "oamip-rounds", "masked", 0.0),
    ("oamip-paper", "tuned", "oamip-rounds", "tuned", 0.0),
)
# How far these are from the reference.
TRAINED = (
    ("oamip-paper", "tuned"),
    ("oamip-rounds", "tuned"),
    ("oamip-rounds", "repaired_tuned"),
    ("reconstruction", "repaired_tuned"),
    ("reconstruction", "distilled"),
    *((command, "distilled") for command in COMMANDS),
)

TITLES = {
    THRESHOLD: "by the paper's threshold",
    EQUAL: "equal shares of every layer",
    PLANNED: "widths planned by prune",
}
VARIED = {"images": "ten other images, one a class", "loss weight": "weight λ of the loss"}
# Signs of the plot, and how far they stand beside the middle.
MARKERS = (("masked", "o", -0.2), ("repaired", "^", -0.07), ("tuned", "s", 0.07), ("distilled", "D", 0.2))
COLUMNS = ("masked", "repaired", "tuned", "repaired_tuned", "distilled")


def spread(values: Sequence[float], places: int = 4) -> str:
    """Return values as mean ± standard deviation, which is unknown of a single value."""
    if not values:
        return "-"
    deviation = f"{np.std(values, ddof=1):.{places}f}" if len(values) > 1 else "?"
    return f"{np.mean(values):.{places}f} ± {deviation}"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of values with its 95 % interval by Student's t; without limits of a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def of(rows: Iterable[Row], key: str, **wanted: object) -> list[float]:
    """Return a figure of the rows that have it and are as wanted, in the order of runs."""
    chosen = [r for r in rows if all(r.get(name) == value for name, value in wanted.items()) and key in r]
    return [float(r[key]) for r in sorted(chosen, key=lambda r: r["run"])]


def main_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a network's main table."""
    titles = "  ".join(f"{title:15s}" for title in ("masked", "repaired", "fine-tuned", "both", "distilled"))
    lines = [f"{'method':24s} {'removed':>15s}  {titles}".rstrip()]
    lines.append(_main_line(rows, REFERENCE, "none"))
    published = PUBLISHED.get((rows[0]["network"], rows[0]["data"]))
    if published:
        cells = [f"{published[key]:.3f}" if key in published else "-" for key in ("removed", "masked", "tuned")]
        lines.append(f"{'the paper, about':24s} {cells[0]:>15s}  {cells[1]:15s}  {'':15s}  {cells[2]:15s}")
        lines[-1] += f"  (reference {published['reference']:.3f})"
    for selection, title in TITLES.items():
        if any(r["selection"] == selection for r in rows):
            lines.append(title)
            lines += [_main_line(rows, m, selection) for m in (*METHODS[1:], *COMMANDS)]
            lines += [*_orders(rows, selection), *_losses(rows, selection)]
    return [line for line in [*lines, *_failed(rows)] if line]


def _main_line(rows: Sequence[Row], method: str, selection: str) -> str:
    wanted = {"method": method, "selection": selection}
    if not of(rows, "removed", **wanted):
        return ""
    cells = [f"{spread(of(rows, key, **wanted)):15s}" for key in COLUMNS]
    name = method if method == REFERENCE else f"  {method}"
    return f"{name:24s} {spread(of(rows, 'removed', **wanted)):>15s}  {'  '.join(cells)}".rstrip()


def _orders(rows: Sequence[Row], selection: str) -> list[str]:
    """Return a line on each inequality, by differences paired over the runs: `verdict` says whether it holds."""
    lines = []
    for kind, pairs in (("order", ORDER), ("control", CONTROLLED)):
        for worse, before, better, after, points in pairs:
            left = {r["run"]: r[before] for r in rows if _is(r, worse, selection, before)}
            right = {r["run"]: r[after] for r in rows if _is(r, better, selection, after)}
            both = sorted(left.keys() & right.keys())
            if both:
                differences = [100 * (right[run] - left[run]) for run in both]
                name = f"{worse} ({_said(before)}) < {better} ({_said(after)})"
                lines.append(f"  {kind:8s} {name:58s} {verdict(differences, points)}")
    return lines


def _losses(rows: Sequence[Row], selection: str) -> list[str]:
    """Return a line on each subnetwork that is trained: how far it is from its reference, paired over the runs."""
    lines = []
    for method, key in TRAINED:
        found = {r["run"]: r[key] for r in rows if _is(r, method, selection, key)}
        bases = {r["run"]: r["masked"] for r in rows if _is(r, REFERENCE, "none", "masked")}
        both = sorted(found.keys() & bases.keys())
        if both:
            name = f"{method} ({_said(key)}) - reference"
            points = _difference([100 * (found[run] - bases[run]) for run in both])
            lines.append(f"  {'to it':8s} {name:58s} {points} points")
    return lines


def _said(key: str) -> str:
    return {"tuned": "fine-tuned", "repaired_tuned": "both"}.get(key, key)


def _is(row: Row, method: str, selection: str, key: str) -> bool:
    return row["method"] == method and row["selection"] == selection and key in row


def verdict(differences: Sequence[float], points: float) -> str:
    """Return whether differences are above some points, by their interval; where it is open, in which way they lean."""
    mean, low, high = interval(differences)
    if not any(differences):
        word = "equal"
    elif low > points:
        word = "holds"
    elif high < points:
        word = "fails"
    else:
        word = "in the mean" if mean > points else "not shown"
    limits = "" if math.isinf(low) else f" [{low:+.1f}, {high:+.1f}]"
    return f"{word}: {mean:+.1f}{limits} points" + (f", of at least {points:g}" if points else "")


def decoupling_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a network's table of decouplings."""
    head = f"{'program':24s} {'removed':>15s}  {'masked':15s}  {'fine-tuned':15s}  {'equal: masked':15s}"
    lines = [f"{head}  {'and repaired':15s}  seconds"]
    for method in DECOUPLINGS:
        if not of(rows, "masked", method=method):
            continue
        keys = ("removed", "masked", "tuned", "equal_masked", "equal_repaired")
        cells = [spread(of(rows, key, method=method)) for key in keys]
        name = "joint" if method == "oamip-paper" else method
        texts = "  ".join(f"{cell:15s}" for cell in cells)
        lines.append(f"{name:24s} {texts}  {np.mean(of(rows, 'seconds', method=method)):7.1f}")
    return lines


def sensitivity_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a network's table of sensitivities."""
    lines = []
    for varied, title in VARIED.items():
        own = [r for r in rows if r["varied"] == varied and "masked" in r]
        if not own:
            continue
        lines.append(title)
        lines.append(f"  {'':8s}  {'removed':15s}  {'masked':15s}  equal: masked")
        parts = {f"{len(own)} draws": own} if varied == "images" else {f"{r['value']:g}": [r] for r in own}
        for name, part in parts.items():
            columns = [[r[key] for r in part] for key in ("removed", "masked", "equal_masked")]
            cells = [spread(values) if len(part) > 1 else f"{values[0]:.4f}" for values in columns]
            lines.append(f"  {name:8s}  {'  '.join(f'{c:15s}' for c in cells)}".rstrip())
            if len(part) > 1:
                cells = [f"{min(values):.3f} to {max(values):.3f}" for values in columns]
                lines.append(f"  {'range':8s}  {'  '.join(f'{c:15s}' for c in cells)}".rstrip())
        if varied == "images" and len(own) > 1:
            shared, chance = overlap([r["equal_kept"] for r in own], own[0]["units"])
            lines.append(f"  at equal shares two draws have {shared:.3f} of the units that stay in common")
            lines[-1] += f", at random {chance:.3f}"
    return lines


def overlap(chosen: Sequence[Sequence[int]], units: int) -> tuple[float, float]:
    """Return the mean share of units that two choices have in common, and what it would be at random."""
    shared = [len({*one} & {*other}) / max(1, len(one)) for one, other in combinations(chosen, 2)]
    return float(np.mean(shared)), float(np.mean([len(one) for one in chosen])) / units


def times_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a network's table of times."""
    head = f"{'program':24s} {'seconds':>15s}  {'in the solver':>15s}  {'programs':>8s}  {'largest gap':>11s}"
    lines = [f"{head}  engine and statuses"]
    for method in TIMED:
        own = [r for r in rows if r["method"] == method and r.get("solver")]
        if not own:
            continue
        solver = own[0]["solver"]
        statuses: dict[str, int] = {}
        for row in own:
            for name, count in row["solver"]["statuses"].items():
                statuses[name] = statuses.get(name, 0) + count
        gaps = [r["solver"]["largest_gap"] for r in own if r["solver"]["largest_gap"] is not None]
        gap = f"{max(gaps):.1e}" if gaps else "-"
        ended = ", ".join(f"{count} {name}" for name, count in sorted(statuses.items()))
        name = "joint" if method == "oamip-paper" else method
        times = [f"{spread(values, 1):>15s}" for values in (of(own, "seconds"), _in_solver(own))]
        cells = f"{name:24s} {'  '.join(times)}  {solver['programs']:8d}  {gap:>11s}"
        lines.append(f"{cells}  {', '.join(solver['engines'])}: {ended}")
    return lines


def _in_solver(rows: Sequence[Row]) -> list[float]:
    return [float(r["solver"]["seconds"]) for r in rows]


def snip_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a network's table of subnetworks that are trained from the first weights."""
    return [*_trained_table(rows, SNIP), *_failed(rows)]


def transfer_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a network's table of subnetworks that are trained on another data set."""
    lines = []
    for target in dict.fromkeys(r["target"] for r in rows):
        lines += [f"to {target}", *_trained_table([r for r in rows if r["target"] == target], TRANSFERRED)]
    return [*lines, *_failed(rows)]


def _trained_table(rows: Sequence[Row], methods: Sequence[str]) -> list[str]:
    """Return a line a method: its accuracy, and how far it is from the whole network, paired over the runs."""
    lines = [f"{'method':28s} {'removed':>15s}  {'trained':15s}  points to the whole network"]
    whole = {r["run"]: r["trained"] for r in rows if r["method"] == REFERENCE and "trained" in r}
    for method in methods:
        own = {r["run"]: r["trained"] for r in rows if r["method"] == method and "trained" in r}
        if not own:
            continue
        line = f"{method:28s} {spread(of(rows, 'removed', method=method)):>15s}  {spread(list(own.values())):15s}"
        both = sorted(own.keys() & whole.keys())
        if method != REFERENCE and both:
            line += f"  {_difference([100 * (own[run] - whole[run]) for run in both])}"
        lines.append(line.rstrip())
    return lines


def _difference(points: Sequence[float]) -> str:
    """Return the mean of differences, and its interval where there are several."""
    mean, low, high = interval(points)
    return f"{mean:+.2f}" if math.isinf(low) else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _failed(rows: Sequence[Row]) -> list[str]:
    return [f"failed: {r.get('method', r.get('target'))}, run {r['run']}: {r['error']}" for r in rows if "error" in r]


TABLES = {
    "main": main_table,
    "decoupling": decoupling_table,
    "sensitivity": sensitivity_table,
    "times": times_table,
    "snip": snip_table,
    "transfer": transfer_table,
}


def plot(rows: Sequence[Row]) -> str:
    """Return the accuracies of the main table as SVG: one panel a network, data set and selection."""
    import matplotlib as mpl  # noqa: PLC0415 - only here
    from matplotlib.figure import Figure  # noqa: PLC0415 - only here

    rows = [r for r in rows if r["experiment"] == "main" and "masked" in r]
    cases = list(dict.fromkeys((r["network"], r["data"]) for r in rows))
    figure = Figure(figsize=(8.0, 2.6 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), 2, squeeze=False, sharey="row")
    for line, (network, data) in zip(panels, cases, strict=True):
        own = [r for r in rows if (r["network"], r["data"]) == (network, data)]
        for axes, selection in zip(line, (THRESHOLD, EQUAL), strict=True):
            # What `prune` plans stands beside the same share of every layer: as many parameters go.
            kinds = dict.fromkeys(METHODS[1:], selection) | ({"prune": PLANNED} if selection == EQUAL else {})
            methods = [m for m, kind in kinds.items() if of(own, "masked", method=m, selection=kind)]
            for key, marker, shift in MARKERS:
                values = {n: of(own, key, method=m, selection=kinds[m]) for n, m in enumerate(methods)}
                found = {n: interval(v) for n, v in values.items() if v}
                errors = [0.0 if math.isinf(low) else mean - low for mean, low, _ in found.values()]
                places, means = [n + shift for n in found], [mean for mean, _, _ in found.values()]
                axes.errorbar(places, means, errors, fmt=marker, ms=4, elinewidth=0.9, label=_said(key))
            axes.axhline(float(np.mean(of(own, "masked", method=REFERENCE))), color="black", ls="--", lw=0.9, zorder=1)
            axes.set_xticks(range(len(methods)), methods, rotation=25, ha="right", fontsize=7)
            removed = np.mean(of(own, "removed", selection=selection))
            axes.set_title(f"{network}, {data}, {selection}: {100 * removed:.0f} % removed", fontsize=8)
            axes.set_ylim(0, 1)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("test accuracy", fontsize=8)
    panels[0][1].legend(fontsize=7, frameon=False, loc="lower right")
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "oamip", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
