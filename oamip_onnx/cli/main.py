"""The entry point of the command `oamip`."""

import sys

from oamip_onnx.cli import bench, inspect, prune, score
from oamip_onnx.cli.app import run

__all__ = ["bench", "inspect", "main", "prune", "run", "score"]


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
