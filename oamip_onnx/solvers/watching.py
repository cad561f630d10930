"""Following a search while it runs: SCIP's incumbent, bound and nodes, recorded and handed to whoever watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from oamip_onnx.solvers.result import TracePoint

Watch = Callable[[float, float, float], None]
"""Called with a search's incumbent, its relative gap, and the share of the node limit that is used."""

_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)

# Points of a trace; later ones thin the earlier out, so that a long search takes no more room than a short one.
_MOST_POINTS = 400


@contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """Let `watch` follow the searches that run in this process meanwhile."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


class Trace:
    """How a search went, from its first to its last change of incumbent or bound."""

    def __init__(self) -> None:
        self._points: list[TracePoint] = []

    def add(self, point: TracePoint) -> None:
        """Add a point, unless neither the incumbent nor the bound has changed."""
        last = self._points[-1] if self._points else None
        if last is None or (last.incumbent, last.bound) != (point.incumbent, point.bound):
            self._points.append(point)
        if len(self._points) > _MOST_POINTS:
            # The first and the last point stay.
            self._points = [*self._points[:-1:2], self._points[-1]]

    @property
    def points(self) -> tuple[TracePoint, ...]:
        """The points in the order of time."""
        return tuple(self._points)


def include_trace(model: Any, nodes: int) -> Trace:
    """Return the trace that a PySCIPOpt model fills while it is optimised; whoever watches is told as well.

    Parameters
    ----------
    model
        The model, not yet optimised.
    nodes
        Its node limit.
    """
    trace, watch = Trace(), _WATCH.get()
    from pyscipopt import SCIP_EVENTTYPE, Eventhdlr  # noqa: PLC0415 - loads SCIP's shared library

    events = (SCIP_EVENTTYPE.BESTSOLFOUND, SCIP_EVENTTYPE.NODESOLVED)

    # SCIP calls the methods by name; the names are PySCIPOpt's.
    class Handler(Eventhdlr):  # type: ignore[misc]
        def eventinit(self) -> None:
            for event in events:
                self.model.catchEvent(event, self)

        def eventexit(self) -> None:
            for event in events:
                self.model.dropEvent(event, self)

        def eventexec(self, _event: Any) -> None:
            trace.add(trace_point(self.model))
            if watch is not None and self.model.getNSols():
                share = min(int(self.model.getNTotalNodes()) / max(nodes, 1), 1.0)
                watch(float(self.model.getPrimalbound()), float(self.model.getGap()), share)

    model.includeEventhdlr(Handler(), "trace", "records the incumbent and the bound")
    return trace


def trace_point(model: Any) -> TracePoint:
    """Return where the search of a PySCIPOpt model stands."""
    values = (float(model.getPrimalbound()), float(model.getDualbound()))
    incumbent, bound = (None if abs(value) >= float(model.infinity()) else value for value in values)
    return TracePoint(round(float(model.getSolvingTime()), 3), incumbent, bound)
