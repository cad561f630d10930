"""The picture of the architecture, as SVG: the stages of a run, and the packages in bands."""

from html import escape

STAGES = ("load", "score", "cut", "verify", "repair", "verify repair", "drift", "bench")
"""The stages of a run, as progress names them."""

BANDS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("cli", "the command line: streams, display, interrupts"),),
    (("running", "pipelines from a file"), ("transferring", "other data, last layer")),
    (
        ("pipeline", "prune"),
        ("benching", "benchmark"),
        ("importing", "from frameworks"),
        ("exporting", "to runtimes"),
        ("finetuning", "training"),
        ("doctor", "what works here"),
    ),
    (("searching", "within a drop"), ("report", "records, tables, page")),
    (("scoring", "scores and widths for a target"),),
    (("planning", "widths for a target"), ("judging", "loss after the repair")),
    (("preparation", "model, samples, channels"), ("latency", "measured by width")),
    (
        ("importance", "OAMIP and others"),
        ("budget", "targets, widths"),
        ("certify", "what holds over a box"),
        ("verify", "masked oracle, file, drift"),
    ),
    (
        ("solvers", "cvxpy, SCIP"),
        ("tightening", "bounds by LP, MIP"),
        ("repair", "bias, least squares"),
        ("training", "the graph in PyTorch"),
    ),
    (
        ("masking", "what removed means"),
        ("formulation", "the programs"),
        ("surgery", "graphsurgeon"),
        ("config", "settings"),
    ),
    (
        ("channels", "labels, rules, groups"),
        ("calibration", "samples, Gram matrices"),
        ("bench", "latency, cold start, profile"),
        ("converters", "to and from ONNX"),
    ),
    (("model", "load, shapes, costs, save"),),
    (("runtime", "ONNX Runtime sessions"), ("tasks", "processes, Dask, cache")),
    (("errors", "one tree"), ("progress", "steps, stage clock"), ("choices", "names of settings")),
)
"""The packages and modules, highest band first: each imports only what stands in a band below its own."""

_WIDTH, _MARGIN, _GAP = 860, 10, 8
_BOX_HEIGHT, _BAND_HEIGHT, _STAGE_HEIGHT, _TOP = 40, 50, 30, 24

_STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:12px;text-anchor:middle;fill:#16324f}"
    ".name{font-weight:600;font-size:13px}.label{text-anchor:start;fill:#708090}"
    ".box{fill:#e8f0f8;stroke:#4a78a8}.stage{fill:#e6f3e6;stroke:#4f9a4f}.arrow{stroke:#708090;fill:none}"
)


def architecture() -> str:
    """Return the picture."""
    parts = [f'<text class="label" x="{_MARGIN}" y="16">A run, stage by stage</text>']
    parts += _stages(_TOP)
    top = _TOP + _STAGE_HEIGHT + 20
    parts.append(
        f'<text class="label" x="{_MARGIN}" y="{top + 12}">The packages: each imports only what stands below it</text>'
    )
    for number, band in enumerate(BANDS):
        parts += _band(band, top + _TOP + number * _BAND_HEIGHT)
    height = top + _TOP + len(BANDS) * _BAND_HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
    title = "<title>The stages of a run, and the packages in bands</title>"
    return "\n".join([head, title, f"<style>{_STYLE}</style>", *parts, "</svg>"]) + "\n"


def _stages(top: int) -> list[str]:
    width = (_WIDTH - 2 * _MARGIN + 2 * _GAP) / len(STAGES) - 2 * _GAP
    found = []
    for number, stage in enumerate(STAGES):
        left = _MARGIN + number * (width + 2 * _GAP)
        found.append(_box("stage", left, top, width, _STAGE_HEIGHT))
        found.append(f'<text x="{left + width / 2:g}" y="{top + _STAGE_HEIGHT / 2 + 4:g}">{escape(stage)}</text>')
        if number:
            start, middle = left - 2 * _GAP, top + _STAGE_HEIGHT / 2
            tip = f"M{left - 5:g} {middle - 4:g}L{left - 1:g} {middle:g}L{left - 5:g} {middle + 4:g}"
            found.append(f'<path class="arrow" d="M{start:g} {middle:g}H{left - 1:g}{tip}"/>')
    return found


def _band(band: tuple[tuple[str, str], ...], top: int) -> list[str]:
    width = (_WIDTH - 2 * _MARGIN + _GAP) / len(band) - _GAP
    found = []
    for number, (name, text) in enumerate(band):
        left = _MARGIN + number * (width + _GAP)
        middle = left + width / 2
        found += [
            _box("box", left, top, width, _BOX_HEIGHT),
            f'<text class="name" x="{middle:g}" y="{top + 17}">{escape(name)}</text>',
            f'<text x="{middle:g}" y="{top + 33}">{escape(text)}</text>',
        ]
    return found


def _box(kind: str, left: float, top: int, width: float, height: int) -> str:
    return f'<rect class="{kind}" x="{left:g}" y="{top}" width="{width:g}" height="{height}" rx="5"/>'
