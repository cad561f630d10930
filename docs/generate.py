"""Writes the generated pages of the documentation; with --check, fails if one of them is out of date."""

import sys
from pathlib import Path

from oamip_onnx.channels.rules import Family, all_rules
from oamip_onnx.formulation import BUILDERS

PAGE = Path(__file__).parent / "operators.md"

INTRODUCTION = """# Operators

What happens to channels at each operator, generated from the rule table. Every operator of the ONNX standard domain is
listed. One of another domain that is not has no rule: the channels that enter or leave it stay, with the reason
`unknown-operator`.

* **contraction**: the contracted axis of the data is joined with the weight's and ends; the output axis starts there.
* **broadcast**: axes are aligned and joined index by index.
* **movement**: the node is run on labels; cells go where their labels go.
* **reduction**: channels beside the reduced axes pass. Sums and norms over channels read zeros like a contraction.
  Under any other statistic whole rows go (heads, groups), and plain channels only with `--allow-inexact`.
* **pinned**: channels that enter or leave stay, for the reason given.

*Encodable* says whether the program in shift form can express the operator; the response form and the layer-wise form
need only that ONNX Runtime can run it.

| operator | opsets | family | encodable | why channels stay |
|---|---|---|---|---|
"""


def operators_page() -> str:
    """Return the operator page as Markdown."""
    encodable = set(BUILDERS)
    lines = []
    for row in all_rules():
        opsets = f"{row.since}–{row.until}" if row.until else f"{row.since}+"
        name = f"{row.domain}.{row.op_type}" if row.domain else row.op_type
        can = "yes" if row.op_type in encodable and not row.domain else ""
        lines.append(f"| {name} | {opsets} | {row.family} | {can} | {row.reason} |")
    counts = ", ".join(f"{sum(r.family is f for r in all_rules())} {f}" for f in Family)
    return INTRODUCTION + "\n".join(lines) + f"\n\n{len(lines)} rules: {counts}.\n"


def main() -> None:
    """Write or check the pages."""
    page = operators_page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        sys.exit(f"{PAGE} is out of date; run `make fix`.")


if __name__ == "__main__":
    main()
