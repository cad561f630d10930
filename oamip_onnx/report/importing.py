"""What `import` reports: who converted, how far the outputs are from the framework's, what can be pruned."""

from rich.text import Text

from oamip_onnx.report.grid import Labelled
from oamip_onnx.report.schema import SCHEMA_VERSION, Record
from oamip_onnx.report.shown import Part, ShownInParts, byte_size


class OutputRecord(Record):
    """How far one output of the ONNX model is from what the framework computes.

    Attributes
    ----------
    name
        The output.
    exact
        Whether it holds whole numbers or texts, which have to be equal.
    max_abs_error
        The largest difference.
    max_rel_error
        The same in units of the largest value that the framework computes.
    """

    name: str
    exact: bool
    max_abs_error: float
    max_rel_error: float


class ImportReport(Record, ShownInParts):
    """What an import wrote, and how it compares with its source.

    Attributes
    ----------
    schema_version
        Version of this format.
    path
        The file that was written.
    converter
        The converter that read the source.
    framework
        Names and versions of the framework, and of the tool that converts from it.
    way
        The exporter that was taken, where the framework has several; else empty.
    inputs, outputs
        Shapes by name; a free dimension has a name.
    opset_before, opset_after
        The version of the standard operators, as the framework wrote it and in the result.
    nodes_before, nodes_after
        The number of nodes, as the framework wrote them and in the result.
    parameters
        The number of weights.
    size_bytes
        Size with the files beside it that belong to it, in bytes.
    groups, prunable_channels
        Groups of channels that can be narrowed, and the channels in them.
    differences
        How far each output is from the framework's.
    tolerance
        How far it may be, in units of its largest value.
    samples, batch_sizes
        On how many samples the outputs were compared, and in batches of which sizes.
    notes
        What a reader should know, as sentences.
    seconds
        Wall-clock seconds by stage.
    """

    schema_version: int = SCHEMA_VERSION
    path: str
    converter: str
    framework: str
    way: str
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    opset_before: int
    opset_after: int
    nodes_before: int
    nodes_after: int
    parameters: int
    size_bytes: int
    groups: int
    prunable_channels: int
    differences: list[OutputRecord]
    tolerance: float
    samples: int
    batch_sizes: list[int]
    notes: list[str]
    seconds: dict[str, float]

    def parts(self) -> list[Part]:
        """Return what was read and written, and how far the outputs are from the framework's."""
        ends = [f"{name} {_shape(shape)}" for name, shape in (*self.inputs.items(), *self.outputs.items())]
        count = len(self.inputs)
        way = f", {self.way}" if self.way else ""
        rows = [
            ("Converter", f"{self.converter} ({self.framework}{way})"),
            ("Inputs", ", ".join(ends[:count])),
            ("Outputs", ", ".join(ends[count:])),
            ("Opset", _change(self.opset_before, self.opset_after)),
            ("Nodes", _change(self.nodes_before, self.nodes_after)),
            ("Parameters", f"{self.parameters:,}"),
            ("Size", byte_size(self.size_bytes)),
            ("Prunable", self._prunable()),
        ]
        rows += [(f"Difference of {one.name}", _difference(one)) for one in self.differences]
        *most, last = map(str, sorted(self.batch_sizes))
        batches = f"{', '.join(most)} and {last}" if most else last
        checked = (
            f"Compared with the framework on {self.samples} samples in batches of {batches}; "
            f"the tolerance is {self.tolerance:g} of the largest value."
        )
        return [Labelled(self.path, tuple(rows)), Text(checked)]

    def _prunable(self) -> str:
        if not self.groups:
            return "nothing; oamip inspect says why"
        return f"{self.prunable_channels:,} channels in {self.groups} group{'s' if self.groups > 1 else ''}"


def _shape(sizes: list[int | str]) -> str:
    return f"({', '.join(map(str, sizes))})"


def _change(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} → {after}"


def _difference(one: OutputRecord) -> str:
    return "equal" if one.exact or not one.max_abs_error else f"{one.max_abs_error:.1e} ({one.max_rel_error:.1e})"
