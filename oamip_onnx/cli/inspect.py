"""`oamip inspect`: what can be narrowed, and why the rest cannot."""

from oamip_onnx.calibration import load_samples
from oamip_onnx.cli import options
from oamip_onnx.cli.app import app, parse_input_shapes
from oamip_onnx.cli.streams import check_json_target, check_targets, output, write_json
from oamip_onnx.config import PruneConfig, make_config
from oamip_onnx.model import Model, TensorType, bind_inputs, infer_shapes, load_model
from oamip_onnx.preparation import analyse_as
from oamip_onnx.report import inspect_channels

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
    """Show what can be narrowed, and why the rest stays."""
    check_json_target(json_path)
    check_targets([model, data], [json_path])
    config = make_config(options.given(ignore=ignore, only=only, allow_inexact=allow_inexact, heads=heads))
    loaded, types = load_typed(model, data, input_shape, config)
    found = inspect_channels(loaded, analyse_as(loaded, types, config))
    write_json(found.model_dump_json(indent=2), json_path)
    if json_path != "-":
        output().print(found)


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
