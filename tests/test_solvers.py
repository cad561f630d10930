"""Both solvers reach the same optimum, prove it, and say why when there is none."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module

import numpy as np
import numpy.typing as npt
import pytest
from graphs import GRAPHS, Builder
from oracle import Analysed, analysed, feeds_for
from scipy import sparse

from oamip_onnx.errors import SolverError
from oamip_onnx.formulation import Bounds, JointOptions, Program, build_network, joint_program, score_aware_bounds
from oamip_onnx.formulation.objective import add_budget, add_group_widths, add_logits, add_marginal_softmax
from oamip_onnx.formulation.program import ProgramBuilder
from oamip_onnx.solvers import Capability, ConicSolver, IntegerSolver, Solver, SolverStatus

SOLVERS: list[Solver] = [ConicSolver(), IntegerSolver()]


def tiny(width: int = 5) -> Analysed:
    b = Builder(["N", 6], seed=1)
    x = b.add("Relu", b.gemm("x", 6, 8))
    x = b.add("Relu", b.gemm(x, 8, width))
    return analysed(b.finish(b.gemm(x, width, 4)))


def tiny_program(options: JointOptions | None = None, samples: int = 4) -> Program:
    subject = tiny()
    network = build_network(subject.model, subject.analysis, subject.model.output_names[0])
    feeds: Mapping[str, npt.NDArray[np.generic]] = feeds_for(subject.model, seed=4, batch=samples)
    labels = network.forward(feeds)[network.logits].argmax(axis=1)
    return joint_program(network, feeds, labels, options).program


def softmax_program(*, widths: list[int] | None = None) -> Program:
    """Return a program in scores only, with a known start."""
    random = np.random.default_rng(0)
    samples, classes, units = 6, 3, 9
    builder = ProgramBuilder("small")
    scores = builder.variables("scores", units, 0.0, 1.0)
    group = np.repeat([0, 1, 2], 3)
    if widths is not None:
        add_group_widths(builder, scores, group, widths)
    matrix = sparse.csr_array(random.normal(size=(samples * classes, units)))
    logits = add_logits(builder, matrix, random.normal(size=samples * classes))
    add_marginal_softmax(builder, logits, np.eye(classes)[random.integers(0, classes, samples)], 1.0)
    return builder.build()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["batch_normalisation", "residual", "pools"])
def test_solution_meets_the_rows(solver: Solver, name: str) -> None:
    subject = analysed(GRAPHS[name]())
    network = build_network(subject.model, subject.analysis, subject.model.output_names[0])
    feeds = feeds_for(subject.model, seed=1)
    program = joint_program(network, feeds, np.zeros(2, np.int64), JointOptions(largest_open=0)).program
    solution = solver.solve(program)
    assert program.start is not None
    assert solution.result.objective is not None
    assert solution.result.objective <= program.objective(program.start) + 1e-6
    assert max(program.violations(solution.x).values()) < 1e-3


def test_both_solvers_agree_where_every_state_is_decided() -> None:
    program = tiny_program()
    assert program.binary_count == 0
    conic, integer = ConicSolver().solve(program), IntegerSolver().solve(program)
    assert conic.result.objective == pytest.approx(integer.result.objective, abs=1e-3)
    assert integer.result.bound == pytest.approx(conic.result.objective, abs=1e-3)


def test_both_solvers_agree_on_squares() -> None:
    random = np.random.default_rng(2)
    builder = ProgramBuilder("squares")
    scores = builder.variables("scores", 6, 0.0, 1.0)
    add_budget(builder, scores, np.ones(6), 2.0)
    builder.squares(sparse.csr_array(random.normal(size=(10, 6))), random.normal(size=10))
    program = builder.build()
    conic, integer = ConicSolver().solve(program), IntegerSolver().solve(program)
    assert conic.result.objective == pytest.approx(integer.result.objective, abs=1e-3)


def test_undecided_states_are_solved_to_the_gap() -> None:
    program = tiny_program(JointOptions(radius=0.3), samples=3)
    assert program.binary_count >= 3
    solution = IntegerSolver(seconds=60.0).solve(program)
    states = solution.x[program.columns("states")]
    np.testing.assert_allclose(states, np.round(states), atol=1e-5)
    assert max(program.violations(solution.x).values()) < 1e-4
    assert solution.result.status is SolverStatus.OPTIMAL
    assert solution.result.gap is not None
    assert solution.result.gap < 1e-3
    # The relaxation cannot be worse, and its bound holds for the exact optimum.
    relaxed = ConicSolver().solve(program)
    assert relaxed.result.objective is not None
    assert relaxed.result.objective <= (solution.result.objective or 0.0) + 1e-4
    assert "relaxed" in relaxed.result.advice


def test_valid_version_holds_its_bounds() -> None:
    program = tiny_program(JointOptions(trust_radius=0.5), samples=2)
    solution = IntegerSolver(seconds=60.0).solve(program)
    assert max(program.violations(solution.x).values()) < 1e-4
    assert solution.x[program.block("scores").columns].min() < 0.99


def test_the_optimum_does_not_depend_on_the_tangents_it_starts_from(monkeypatch: pytest.MonkeyPatch) -> None:
    program = softmax_program(widths=[1, 2, 1])
    expected = ConicSolver().solve(program).result.objective
    integer = import_module("oamip_onnx.solvers.integer")
    monkeypatch.setattr(integer, "_tangent_points", lambda _program, _start, _notes: [])
    assert IntegerSolver().solve(program).result.objective == pytest.approx(expected, abs=1e-3)


def test_reaching_the_node_limit_says_so() -> None:
    program = tiny_program(JointOptions(radius=0.5), samples=6)
    assert program.binary_count > 5
    result = IntegerSolver(nodes=1, gap=0.0).solve(program).result
    if result.status is SolverStatus.LIMIT:
        assert "node limit" in result.advice
    assert result.bound is not None
    assert result.objective is not None
    assert result.bound <= result.objective + 1e-6


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_infeasible_rows_are_named(solver: Solver) -> None:
    program = softmax_program(widths=[1, 7, 1])
    with pytest.raises(SolverError, match=r"infeasible.*'small': the rows 'group widths' contradict the others"):
        solver.solve(program)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_mask_in_the_authors_rows_is_infeasible(solver: Solver) -> None:
    program = tiny_program(JointOptions(inactive_rows=True))
    scores = program.block("scores")
    mask = np.ones(scores.size)
    mask[:4] = 0.0
    fixed = replace(scores, lower=mask, upper=mask)
    blocks = tuple(fixed if block.name == "scores" else block for block in program.blocks)
    with pytest.raises(SolverError, match=r"the rows 'relu o(n|ff).*' contradict the others"):
        solver.solve(replace(program, blocks=blocks, start=None))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_values_that_are_no_numbers_are_named(solver: Solver) -> None:
    program = softmax_program(widths=[1, 1, 1])
    broken = [replace(r, upper=np.full_like(r.upper, np.nan)) if r.family == "logits" else r for r in program.rows]
    with pytest.raises(SolverError, match=r"rows 'logits' of the program 'small'.*NaN"):
        solver.solve(replace(program, rows=tuple(broken)))


def test_same_program_same_solution() -> None:
    program = softmax_program(widths=[1, 2, 1])
    for solver in SOLVERS:
        np.testing.assert_array_equal(solver.solve(program).x, solver.solve(program).x)


def test_capabilities_can_be_asked() -> None:
    assert Capability.BINARIES not in ConicSolver().capabilities
    assert Capability.BINARIES in IntegerSolver().capabilities


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_program_without_a_bound_is_an_error(solver: Solver) -> None:
    builder = ProgramBuilder("bottomless")
    free = builder.variables("free", 2, -np.inf, np.inf)
    builder.rows("difference", sparse.csr_array([[1.0, -1.0]]), 0.0, 0.0)
    builder.cost([free.start], 1.0)
    with pytest.raises(SolverError, match=r"unbounded.*'bottomless'"):
        solver.solve(builder.build())


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_infinite_bounds_of_a_form_are_named(solver: Solver) -> None:
    subject = tiny()
    network = build_network(subject.model, subject.analysis, subject.model.output_names[0])
    feeds: Mapping[str, npt.NDArray[np.generic]] = feeds_for(subject.model, seed=4, batch=2)
    bounds = score_aware_bounds(network, feeds)
    infinite = Bounds(bounds.lower, {name: np.full_like(v, np.inf) for name, v in bounds.upper.items()})
    program = joint_program(network, feeds, np.zeros(2, np.int64), JointOptions(form="gate"), infinite).program
    with pytest.raises(SolverError, match=r"rows 'gate: h [≤≥].*no finite numbers"):
        solver.solve(program)
