"""`oamip inspect`: what can be narrowed, and why the rest cannot."""

from rich.table import Table

from oamip_onnx.calibration import load_samples
from oamip_onnx.channels import analyse
from oamip_onnx.cli import options
from oamip_onnx.cli.app import app, check_json_target, output, parse_input_shapes, write_json
from oamip_onnx.model import bind_inputs, infer_shapes, load_model
from oamip_onnx.report import Inspection, inspect_channels

EPILOG = "Example: oamip inspect model.onnx --json -"


@app.command(epilog=EPILOG)
def inspect(
    model: options.Model,
    data: options.Data = None,
    input_shape: options.InputShape = None,
    ignore: options.Ignore = None,
    only: options.Only = None,
    json_path: options.Json = None,
) -> None:
    """Show the channel groups of a model, and why the other channels stay."""
    check_json_target(json_path)
    loaded = load_model(model)
    shapes = parse_input_shapes(input_shape)
    feeds = None
    if data is not None:
        samples = load_samples(data, loaded)
        feeds = next(samples.take(slice(0, samples.run_size or 1)).batches(1))
    types = infer_shapes(loaded, bind_inputs(loaded, feeds, shapes), feeds)
    analysis = analyse(loaded, types, ignore=ignore or (), only=only or ())
    found = inspect_channels(loaded, analysis)
    write_json(found.model_dump_json(indent=2), json_path)
    if json_path != "-":
        _show(found)


def _show(found: Inspection) -> None:
    console = output()
    groups = Table(title=None, header_style="bold")
    for column in ("Group", "Width", "Blocks", "Tensors", "MACs", "Parameters"):
        groups.add_column(column, justify="left" if column in {"Group", "Tensors"} else "right", overflow="fold")
    for group in found.groups:
        groups.add_row(
            group.name,
            str(group.width),
            str(group.blocks),
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
    if found.pinned:
        pins = Table(title=None, header_style="bold")
        for column in ("Stays", "Code", "Reason"):
            pins.add_column(column, overflow="fold")
        for pin in found.pinned:
            pins.add_row(pin.tensor, pin.code, pin.reason)
        console.print(pins)
