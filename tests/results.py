"""Made-up results of any size, for tests of what is made from them."""

import numpy as np

from oamip_onnx.report import Result
from oamip_onnx.report.schema import (
    CertificateRecord,
    DriftRecord,
    GroupRecord,
    LatencyRecord,
    LayerRecord,
    MetricRecord,
    ModelRecord,
    OperatorRecord,
    PinRecord,
    SolverRecord,
    SpeedupRecord,
    TraceRecord,
    VerificationRecord,
)


def latency(p50: float) -> LatencyRecord:
    percentiles = [float(v) for v in p50 * np.exp(np.linspace(-0.1, 0.6, 101) - 0.25)]
    return LatencyRecord(
        p50=percentiles[50], p90=percentiles[90], p99=percentiles[99], runs=500, percentiles=percentiles
    )


def made_up_result(blocks: int = 3, width: int = 64, *, name: str = "block", kept: float = 0.5) -> Result:
    """Return the result of a residual network: per block three convolutions, an addition and the ReLUs."""
    generator = np.random.default_rng(0)
    groups: list[GroupRecord] = []
    layers: list[LayerRecord] = []

    def group(label: str, size: int) -> str:
        scores = generator.random(size)
        stays = np.sort(np.argsort(scores)[size - int(size * kept) :])
        groups.append(
            GroupRecord(
                name=label,
                tensors=[label],
                before=size,
                after=len(stays),
                kept=stays.tolist(),
                importance=scores.round(6).tolist(),
                exact=True,
            )
        )
        return label

    def layer(label: str, operator: str, inputs: list[int], owner: str | None, size: int | None, macs: int = 0) -> int:
        layers.append(
            LayerRecord(
                name=label,
                operator=operator,
                output=f"{label}:0",
                inputs=inputs,
                groups=[owner] if owner else [],
                width_before=size,
                width_after=int(size * kept) if owner and size else size,
                macs_before=macs,
                macs_after=int(macs * kept),
            )
        )
        return len(layers) - 1

    stream = group("stem:0", width)
    here = layer("stem", "Conv", [], stream, width, 1000)
    for number in range(blocks):
        first = group(f"{name}{number}/first:0", width)
        second = group(f"{name}{number}/second:0", width)
        inner = layer(f"{name}{number}/first", "Conv", [here], first, width, 1000)
        inner = layer(f"{name}{number}/relu", "Relu", [inner], first, width)
        inner = layer(f"{name}{number}/second", "Conv", [inner], second, width, 1000)
        inner = layer(f"{name}{number}/third", "Conv", [inner], stream, width, 1000)
        here = layer(f"{name}{number}/add", "Add", [here, inner], stream, width)
    layer("head", "Gemm", [here], None, 10, 100)
    macs = sum(one.macs_before for one in layers)
    return Result(
        original=_model(macs, 4.0, 3.0),
        pruned=_model(int(macs * kept), 2.5, 1.7),
        speedup=SpeedupRecord(median=1.6, low=1.5, high=1.7, significant=True),
        verification=VerificationRecord(
            passed=True, max_abs_error=1e-6, max_rel_error=2e-6, tolerance=1e-4, samples=64
        ),
        drift=DriftRecord(
            cosine=0.99,
            sqnr_db=20.0,
            top1_agreement=0.95,
            metric=MetricRecord(name="accuracy", original=0.9, pruned=0.88 + 0.01 * kept),
            samples=1000,
            data="evaluation",
        ),
        groups=groups,
        pinned=[
            PinRecord(tensor="head:0", code="graph-output", reason="These channels are part of the graph output 'y'.")
        ],
        solver=[
            SolverRecord(
                task="joint program",
                engine="SCIP",
                status="optimal",
                objective=3.0,
                bound=2.9,
                gap=0.033,
                nodes=40,
                seconds=2.0,
                advice="",
                trace=[
                    TraceRecord(seconds=0.1, incumbent=None, bound=1.0),
                    TraceRecord(seconds=1.0, incumbent=3.5, bound=2.0),
                    TraceRecord(seconds=2.0, incumbent=3.0, bound=2.9),
                ],
            )
        ],
        certificates=[
            CertificateRecord(
                task="chosen subset",
                statement="No subset loses less.",
                objective=3.0,
                bound=2.9,
                gap=0.033,
                engine="SCIP",
            )
        ],
        repair=[],
        importance="oamip (response)",
        notes=["A note."],
        seconds={"load": 0.1, "score": 2.0},
        environment={"cpu": "made up", "logical_cores": 2},
        config={"version": "0.1.0", "target": "ratio=0.5", "repair": "none"},
        layers=layers,
        command="oamip prune model.onnx small.onnx --data data.npz",
    )


def _model(macs: int, p50: float, convolution: float) -> ModelRecord:
    operators = [
        OperatorRecord(operator="Conv", milliseconds=convolution),
        OperatorRecord(operator="Gemm", milliseconds=0.2),
    ]
    return ModelRecord(
        parameters=macs * 3, macs=macs, size_bytes=macs * 12, latency_ms=latency(p50), operators=operators
    )
