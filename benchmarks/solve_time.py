"""How long the joint OAMIP program takes: LeNet-5 and a 784-300-100-10 network, ten images, one thread.

    python benchmarks/solve_time.py [--runs 3] [--models more.onnx …]

The fully connected network is fitted here, with scikit-learn, on the shipped calibration images.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from oamip_onnx.budget import uniform_widths
from oamip_onnx.calibration import load_samples
from oamip_onnx.channels import analyse
from oamip_onnx.importance import ImportanceContext, find_logits, joint_scores, response_scores
from oamip_onnx.model import bind_inputs, infer_shapes, load_model
from oamip_onnx.runtime import RuntimeOptions

FASHION = Path(__file__).resolve().parent.parent / "examples" / "fashion"


def fully_connected(iterations: int) -> onnx.ModelProto:
    """Return a 784-300-100-10 network fitted to the shipped calibration images."""
    data = np.load(FASHION / "calibration.npz")
    images = data["x"].reshape(len(data["x"]), -1).astype(np.float32) / 255
    network = MLPClassifier((300, 100), max_iter=iterations, random_state=0, early_stopping=True)
    network.fit(images, data["labels"])
    nodes = [helper.make_node("Flatten", ["x"], ["h0"])]
    weights = []
    for layer, (weight, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        weights += [numpy_helper.from_array(weight.astype(np.float32), f"w{layer}")]
        weights += [numpy_helper.from_array(bias.astype(np.float32), f"b{layer}")]
        last = layer == len(network.coefs_) - 1
        out = "y" if last else f"a{layer}"
        nodes.append(helper.make_node("Gemm", [f"h{layer}", f"w{layer}", f"b{layer}"], [out]))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"h{layer + 1}"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 28, 28])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])]
    graph = helper.make_graph(nodes, "fully_connected", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def context_of(source: Path | onnx.ModelProto) -> ImportanceContext:
    """Return the context of a network, half of every group planned to stay."""
    model = load_model(source)
    samples = load_samples(FASHION / "calibration.npz", model)
    types = infer_shapes(model, bind_inputs(model))
    analysis = analyse(model, types)
    widths = uniform_widths(analysis.groups, 0.5)
    options = RuntimeOptions(threads=1)
    return ImportanceContext(model, analysis, samples, options, widths, 0, find_logits(model, types))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one run of the shift form on LeNet-5, as a smoke test")
    args = parser.parse_args()
    networks: dict[str, Path | onnx.ModelProto] = {"LeNet-5": FASHION / "lenet5.onnx"}
    if args.quick:
        args.runs = 1
    else:
        networks |= {"784-300-100-10": fully_connected(100), "ResNet-8": FASHION / "resnet8.onnx"}
        networks |= {path.stem: path for path in args.models}
    rows = []
    print(f"{'network':16s} {'form':9s} {'engine':18s} {'status':20s} {'objective':>10s} {'seconds':>8s}  (median)")
    for name, source in networks.items():
        context = context_of(source)
        for form, criterion in (("shift", joint_scores), ("response", response_scores)):
            # On ten images of the ResNet the interior-point method finds the shift form's rows too thin.
            if (args.quick and form == "response") or (name == "ResNet-8" and form == "shift"):
                continue
            seconds = []
            for _ in range(args.runs):
                began = time.perf_counter()
                # One thread for the solvers' linear algebra, whatever the machine has.
                with threadpool_limits(1):
                    scores = criterion(context)
                seconds.append(time.perf_counter() - began)
            last = scores.solver[-1]
            row = {
                "network": name,
                "form": form,
                "engine": last.engine,
                "status": ", ".join(sorted({str(s.status) for s in scores.solver})),
                "objective": last.objective,
                "seconds": statistics.median(seconds),
                "notes": list(scores.notes),
            }
            rows.append(row)
            print(
                f"{name:16s} {form:9s} {last.engine:18s} {row['status']:20s} {last.objective or float('nan'):10.4f} "
                f"{row['seconds']:8.1f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
