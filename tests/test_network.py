"""The network as rows: lanes that join each layer to what it reads, boxes of elementwise operators."""

from hypothesis import given
from hypothesis import strategies as st
from results import made_up_result

from oamip_onnx.report.network import Gutter, lanes, network_rows, short_name


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    """Return what each node of a random graph reads."""
    count = draw(st.integers(1, 12))
    return [sorted(draw(st.sets(st.integers(0, node - 1), max_size=3))) if node else [] for node in range(count)]


@given(graphs())
def test_every_edge_is_one_unbroken_lane(inputs: list[list[int]]) -> None:
    gutters = lanes(inputs)
    readers = {node: [r for r, sources in enumerate(inputs) if node in sources] for node in range(len(inputs))}
    for node, gutter in enumerate(gutters):
        assert gutter.leaving == bool(readers[node])
        assert len(gutter.entering) == len(inputs[node])
        # A node never sits on a lane that passes by.
        assert gutter.column not in gutter.through
    for node, found in readers.items():
        column = gutters[node].column
        for row in range(node + 1, max(found, default=node) + 1):
            assert (column in gutters[row].entering) == (row in found)
            # It passes every row before its last reader, and ends there.
            assert (column in gutters[row].through) == (row < max(found))


def test_a_residual_block_has_two_lanes() -> None:
    chain = lanes([[], [0], [1], [0, 2], [3]])
    assert [g.column for g in chain] == [0, 1, 1, 0, 0]
    assert chain[3] == Gutter(0, (), (0, 1), leaving=True)


def test_elementwise_operators_share_a_box_with_what_they_follow() -> None:
    rows = network_rows(made_up_result(blocks=2))
    assert [row.operators for row in rows] == ["Conv", *(["Conv + Relu", "Conv", "Conv", "Add"] * 2), "Gemm"]
    assert [row.gutter.column for row in rows] == [0, 1, 1, 1, 0, 1, 1, 1, 0, 0]
    assert (rows[1].width_before, rows[1].width_after, rows[1].share_left) == (64, 32, 0.5)
    assert rows[-1].pin is not None
    assert all(row.pin is None for row in rows[:-1])


def test_short_names() -> None:
    assert short_name("/blocks/blocks.0/first/first.0/Conv") == "blocks.0/first.0/Conv"
    assert short_name("Conv_12") == "Conv_12"
    assert short_name("/") == "/"
