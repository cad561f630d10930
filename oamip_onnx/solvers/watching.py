"""Following a search while it runs: SCIP's incumbent, gap and nodes, handed to whoever watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Watch = Callable[[float, float, float], None]
"""Called with a search's incumbent, its relative gap, and the share of the node limit that is used."""

_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """Let `watch` follow the searches that run in this process meanwhile."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


def include_watch(model: Any, nodes: int) -> None:
    """Call whoever watches at every new incumbent and every solved node of a PySCIPOpt model with that node limit."""
    found = _WATCH.get()
    if found is None:
        return
    watch: Watch = found
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
            if self.model.getNSols():
                share = min(int(self.model.getNTotalNodes()) / max(nodes, 1), 1.0)
                watch(float(self.model.getPrimalbound()), float(self.model.getGap()), share)

    model.includeEventhdlr(Handler(), "watch", "hands the incumbent and the gap on")
