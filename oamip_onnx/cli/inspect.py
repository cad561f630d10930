"""`oamip inspect`: what can be narrowed, and why the rest cannot."""

from rich.table import Table

from oamip_onnx.calibration import load_samples
from oamip_onnx.cli import options
from oamip_onnx.cli.app import app, check_json_target, output, parse_input_shapes, write_json
from oamip_onnx.config import make_config
from oamip_onnx.model import bind_inputs, infer_shapes, load_model
from oamip_onnx.preparation import analyse_as
from oamip_onnx.report import GroupInspection, Inspection, inspect_channels

EPILOG = "Example: oamip inspect model.onnx --json -"


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
    """Show the channel groups of a model, and why the other channels stay."""
    check_json_target(json_path)
    given = options.given(ignore=ignore, only=only, allow_inexact=allow_inexact, heads=heads)
    config = make_config(given)
    loaded = load_model(model)
    shapes = parse_input_shapes(input_shape)
    feeds = None
    if data is not None:
        samples = load_samples(data, loaded)
        feeds = samples.one_run()
    types = infer_shapes(loaded, bind_inputs(loaded, feeds, shapes), feeds)
    analysis = analyse_as(loaded, types, config)
    found = inspect_channels(loaded, analysis)
    write_json(found.model_dump_json(indent=2), json_path)
    if json_path != "-":
        _show(found)


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


def _show(found: Inspection) -> None:
    console = output()
    groups = Table(title=None, header_style="bold")
    for column in ("Group", "Width", "Constraints", "Tensors", "MACs", "Parameters"):
        groups.add_column(column, justify="left" if column in {"Group", "Constraints"} else "right", overflow="fold")
    for group in found.groups:
        groups.add_row(
            group.name,
            str(group.width),
            _constraints(group),
            str(len(group.tensors)),
            f"{100 * group.macs_share:.1f} %",
            f"{100 * group.parameters_share:.1f} %",
        )
    console.print(groups)
    console.print(
        f"{found.parameters:,} parameters, {found.macs:,} MACs; with every group at its narrowest, "
        f"{100 * found.smallest_macs:.1f} % of the MACs and {100 * found.smallest_parameters:.1f} % of the parameters "
        "are left."
    )
    console.print(
        f"The program in shift form can express {100 * found.encodable_nodes:.0f} % of the nodes, with "
        f"{100 * found.encodable_macs:.0f} % of the MACs."
    )
    if found.pinned:
        pins = Table(title=None, header_style="bold")
        for column in ("Stays", "Code", "Reason"):
            pins.add_column(column, overflow="fold")
        by_reason: dict[tuple[str, str], list[str]] = {}
        for pin in found.pinned:
            by_reason.setdefault((pin.code, pin.reason), []).append(pin.tensor)
        for (code, reason), tensors in by_reason.items():
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            pins.add_row(tensors[0] + more, code, reason)
        console.print(pins)
