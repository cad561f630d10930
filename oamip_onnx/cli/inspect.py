"""`oamip inspect`: what can be narrowed, and why the rest cannot."""

from rich.console import Console
from rich.table import Table

from oamip_onnx.calibration import load_samples
from oamip_onnx.cli import options
from oamip_onnx.cli.app import app, parse_input_shapes
from oamip_onnx.cli.streams import check_json_target, output, write_json
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.model import Model, TensorType, bind_inputs, infer_shapes, load_model
from oamip_onnx.preparation import analyse_as
from oamip_onnx.report import GroupInspection, Inspection, inspect_channels

EPILOG = "Example: oamip inspect model.onnx --json -"

# Below this width tables fold names beyond recognition; lines take their place.
_NARROW_COLUMNS = 80


@app.command(epilog=EPILOG)
def inspect(
    model: options.Model,
    data: options.Data = None,
    input_shape: options.InputShape = None,
    ignore: options.Ignore = None,
    only: options.Only = None,
    allow_inexact: options.AllowInexact = None,
    heads: options.Heads = None,
    json_path: options.Json = None,
) -> None:
    """Show what can be narrowed, and why the rest stays."""
    check_json_target(json_path)
    config = make_config(options.given(ignore=ignore, only=only, allow_inexact=allow_inexact, heads=heads))
    loaded, types = load_typed(model, data, input_shape, config)
    found = inspect_channels(loaded, analyse_as(loaded, types, config))
    write_json(found.model_dump_json(indent=2), json_path)
    if json_path != "-":
        show(found, output())


def load_typed(
    model: str, data: str | None, input_shape: list[str] | None, config: PruneConfig
) -> tuple[Model, dict[str, TensorType]]:
    """Return a model with the concrete types of its tensors: by samples, else by shapes given for its inputs.

    Raises
    ------
    ModelError, DataError, UsageError
        If the model, the samples or a shape are not usable, or a dynamic dimension is left open.
    """
    loaded = load_model(model)
    shapes = config.input_shapes | parse_input_shapes(input_shape)
    feeds = None if data is None else load_samples(data, loaded).one_run()
    return loaded, infer_shapes(loaded, bind_inputs(loaded, feeds, shapes), feeds)


def show(found: Inspection, console: Console) -> None:
    """Print groups, costs and pins: as tables, or as lines where the console is narrow."""
    narrow = console.width < _NARROW_COLUMNS
    if narrow:
        _show_group_lines(found, console)
    elif found.groups:
        console.print(_group_table(found))
    console.print(
        f"{found.parameters:,} parameters, {found.macs:,} MACs; with every group at its narrowest, "
        f"{100 * found.smallest_macs:.1f} % of the MACs and {100 * found.smallest_parameters:.1f} % of the parameters "
        "are left."
    )
    console.print(
        f"The program in shift form can express {100 * found.encodable_nodes:.0f} % of the nodes, with "
        f"{100 * found.encodable_macs:.0f} % of the MACs."
    )
    if not found.pinned:
        return
    if narrow:
        for tensors, code, reason in _pins(found):
            console.print(f"{tensors} stays ({code})", style="bold", markup=False)
            console.print(f"  {reason}", markup=False)
    else:
        console.print(_pin_table(found))
    for code, remedy in found.remedies.items():
        console.print(f"{code}: {remedy}", markup=False)


def _constraints(group: GroupInspection) -> str:
    """Return what binds the units of a group, in words."""
    words = []
    if group.blocks > 1:
        words.append(f"{group.blocks} equal blocks")
    if not group.exact:
        words.append("inexact")
    if not group.minimum_width:
        words.append("may vanish")
    return ", ".join(words)


def _show_group_lines(found: Inspection, console: Console) -> None:
    for group in found.groups:
        console.print(group.name, style="bold", markup=False)
        bound = _constraints(group)
        console.print(
            f"  width {group.width}{f', {bound}' if bound else ''}; {len(group.tensors)} tensors; "
            f"{100 * group.macs_share:.1f} % of the MACs, {100 * group.parameters_share:.1f} % of the parameters"
        )


def _group_table(found: Inspection) -> Table:
    table = Table(title=None, header_style="bold")
    for column in ("Group", "Width", "Constraints", "Tensors", "MACs", "Parameters"):
        table.add_column(column, justify="left" if column in {"Group", "Constraints"} else "right", overflow="fold")
    for group in found.groups:
        table.add_row(
            group.name,
            str(group.width),
            _constraints(group),
            str(len(group.tensors)),
            f"{100 * group.macs_share:.1f} %",
            f"{100 * group.parameters_share:.1f} %",
        )
    return table


def _pin_table(found: Inspection) -> Table:
    table = Table(title=None, header_style="bold")
    for column in ("Stays", "Code", "Reason"):
        table.add_column(column, overflow="fold")
    for row in _pins(found):
        table.add_row(*row)
    return table


def _pins(found: Inspection) -> list[tuple[str, str, str]]:
    """Return the pins as (tensors, code, reason), one entry a reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for pin in found.pinned:
        by_reason.setdefault((pin.code, pin.reason), []).append(pin.tensor)
    return [
        (tensors[0] + (f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""), code, reason)
        for (code, reason), tensors in by_reason.items()
    ]
