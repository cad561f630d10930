"""`oamip explain`: one name of a model: what it belongs to, what can go, and why the rest stays."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from oamip_onnx.cli import options
from oamip_onnx.cli.app import app
from oamip_onnx.cli.inspect import load_typed
from oamip_onnx.cli.rows import print_rows, print_title
from oamip_onnx.cli.streams import check_json_target, output, say_notes, write_json
from oamip_onnx.config import make_config
from oamip_onnx.report.explaining import explain as explain_name
from oamip_onnx.report.explanation import (
    AxesRecord,
    Explanation,
    GroupExplanation,
    HeldRecord,
    NodeRecord,
    TensorRecord,
    UnitExplanation,
)
from oamip_onnx.report.ranking import grouping_settings
from oamip_onnx.report.subjects import in_words

EPILOG = "Example: oamip explain model.onnx '/layer1/conv1/Conv[3]'"

# Longer lists are for the JSON.
_SHOWN = 6

_TITLES = {"made": "Makes", "read": "Reads"}


@app.command(epilog=EPILOG)
def explain(
    model: options.Model,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A node, tensor or group, or one unit: NAME[3]; NAME[:,3] counts on axis 1. 'tensor:NAME' chooses.",
            show_default=False,
        ),
    ],
    data: options.Data = None,
    input_shape: options.InputShape = None,
    ignore: options.Ignore = None,
    only: options.Only = None,
    allow_inexact: options.AllowInexact = None,
    heads: options.Heads = None,
    scores: options.Scores = None,
    result: options.RunResult = None,
    json_path: options.Json = None,
) -> None:
    """Tell why one layer can or cannot be cut.

    Tells what else it is tied to, what it costs, and what would help.
    """
    check_json_target(json_path)
    files = [Path(file) for file in (result, scores) if file is not None]
    config = make_config(
        *(grouping_settings(file) for file in files),
        options.given(ignore=ignore, only=only, allow_inexact=allow_inexact, heads=heads),
    )
    loaded, types = load_typed(model, data, input_shape, config)
    found = explain_name(
        loaded,
        types,
        config,
        name,
        scores=None if scores is None else Path(scores),
        result=None if result is None else Path(result),
    )
    write_json(found.model_dump_json(indent=2), json_path)
    if json_path != "-":
        show(found, output())
    say_notes(found.notes)


def show(found: Explanation, console: Console) -> None:
    """Print an explanation in words."""
    operator = f" ({found.operator})" if found.operator and found.kind == "node" else ""
    print_title(console, f"{found.kind.capitalize()} {found.name}{operator}")
    if found.unit is not None:
        _show_unit(found.unit, found.macs, found.parameters, console)
    said: set[str] = set()
    for tensor in found.tensors:
        if tensor.role != "weight":
            _show_tensor(tensor, console, said)
    for group in found.groups:
        _show_group(group, console)
    _show_weights([t for t in found.tensors if t.role == "weight"], console)
    _show_changes(found, console)


def _some(names: Sequence[str]) -> str:
    """Return names one after the other, the first few of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _amounts(macs: int, parameters: int, macs_share: float, parameters_share: float) -> str:
    return f"{macs:,} MACs ({macs_share:.2%}), {parameters:,} parameters ({parameters_share:.2%})"


def _labels(nodes: Iterable[NodeRecord]) -> str:
    return _some([f"{node.name} ({node.operator})" for node in nodes])


def _show_tensor(tensor: TensorRecord, console: Console, said: set[str]) -> None:
    """Print one tensor; what a code means is said once, and the code added to `said`."""
    if tensor.role != "itself":
        print_title(console, f"{_TITLES[tensor.role]} {tensor.name}")
    kind = f"{tensor.kind}, {tensor.element_type} {'×'.join(map(str, tensor.shape)) or 'scalar'}"
    rows = [("is", kind + (", an output of the graph" if tensor.is_output else ""))]
    if tensor.role == "itself":
        rows += [("made by", tensor.made_by or ""), ("read by", _some(tensor.read_by))]
    for axes in tensor.channels:
        rows.append(("channels", _channels(axes)))
        for held in axes.held:
            rows += _held_rows(held, f"{held.cells} stay")[: 1 if held.code in said else None]
            said.add(held.code)
    if tensor.absence is not None:
        rows += _held_rows(tensor.absence, "no channels")[: 1 if tensor.absence.code in said else None]
        said.add(tensor.absence.code)
    print_rows(console, rows)


def _channels(axes: AxesRecord) -> str:
    text = f"{axes.cells} on {in_words(tuple(axes.axes))}"
    if not axes.removable:
        return f"{text}, all of which stay"
    units = "" if axes.units == axes.removable else f" as {axes.units} units"
    part = "" if axes.removable == axes.cells else f"{axes.removable} can go"
    groups = f"group {_some(axes.groups)}" if len(axes.groups) == 1 else f"groups {_some(axes.groups)}"
    return f"{text}{', ' if part else ''}{part}{units}, {groups}"


def _held_rows(held: HeldRecord, label: str) -> list[tuple[str, str]]:
    code = f" ({held.code})" if held.code else ""
    return [(label, f"{held.reason}{code}"), ("means", held.meaning), ("would help", held.remedy)]


def _show_group(group: GroupExplanation, console: Console) -> None:
    print_title(console, f"Group {group.name}")
    least, step = group.minimum_width, group.step or 1
    steps = f" in steps of {step}" if step > 1 else ""
    rows = [("width", f"{group.width}; can be cut to {least}–{group.width - step}{steps}")]
    if group.step is None:
        rows = [("width", f"{group.width}, the least that its blocks allow")]
    if group.kept is not None:
        rows.append(("kept", f"{len(group.kept)} in the run"))
    rows += [("bound by", constraint.detail) for constraint in group.constraints]
    loosened = {c.remedy for c in group.constraints if c.name in {"blocks", "tied"}}
    rows += [("would help", remedy) for remedy in sorted(loosened)]
    rows += [
        ("made by", _labels(group.producers)),
        ("ends at", _labels(group.readers)),
        ("tensors", _some(group.activations)),
        ("slices", _some([f"{s.initializer} on {in_words(tuple(s.axes))}" for s in group.slices])),
        ("holds", _amounts(group.macs, group.parameters, group.macs_share, group.parameters_share)),
    ]
    if group.step_macs is not None and group.step_parameters is not None:
        many = "a unit" if step == 1 else f"{step} units"
        rows.append((many, f"{group.step_macs:,} MACs, {group.step_parameters:,} parameters"))
    if group.ranking is None:
        rows.append(("scores", "none: no weight produces these units; give --scores"))
    else:
        r = group.ranking
        spread = f"{r.lowest:.4g} to {r.highest:.4g}, median {r.median:.4g}: {r.source}"
        rows += [("scores", spread), ("first to go", ", ".join(map(str, r.first_to_go)))]
    print_rows(console, rows)


def _show_unit(unit: UnitExplanation, macs: int, parameters: int, console: Console) -> None:
    where = f"channel {unit.position} on {in_words(tuple(unit.axes))} of {unit.tensor}"
    if unit.held is not None:
        reason = unit.held if unit.held.reason else unit.held.model_copy(update={"reason": "No layer makes it."})
        print_rows(console, [("channel", where), *_held_rows(reason, "stays")])
        return
    rows = [("unit", f"{where}: unit {unit.unit} of group {unit.group}")]
    if unit.goes_with:
        rows.append(("goes with", f"channels {_some([str(p) for p in unit.goes_with])}"))
    if unit.block is not None:
        rows.append(("block", f"{unit.block}; one unit of each other block goes with it"))
    if unit.score is not None:
        rows += [("score", f"{unit.score:.4g}"), ("rank", f"{unit.rank} of {unit.rank_of}; 1 is the first to go")]
    if unit.kept is not None:
        rows.append(("in the run", "kept" if unit.kept else "removed"))
    if unit.macs is not None and unit.parameters is not None:
        shares = unit.macs / max(macs, 1), unit.parameters / max(parameters, 1)
        rows.append(("holds", _amounts(unit.macs, unit.parameters, *shares)))
    print_rows(console, rows)


def _show_weights(weights: list[TensorRecord], console: Console) -> None:
    if weights:
        print_title(console, "Weights and parameters")
    for weight in weights:
        channels = "; ".join(_channels(axes) for axes in weight.channels) or "no channels"
        shape = "×".join(map(str, weight.shape)) or "scalar"
        console.print(f"  {weight.name} ({shape}): {channels}", markup=False)


def _show_changes(found: Explanation, console: Console) -> None:
    if found.changes:
        print_title(console, "Other settings")
        print_rows(
            console,
            [("with", f"{c.setting}: {c.units_then} units can go here, {c.units_now} now") for c in found.changes],
        )
