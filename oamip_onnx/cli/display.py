"""The live display of a run on standard error; JSON lines where they are wanted; nothing in a pipe."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from oamip_onnx.cli.streams import emit, logs_json, messages
from oamip_onnx.progress import Progress as Callback
from oamip_onnx.progress import Step

# A log wants to know that a stage goes on, not every unit of it.
_SECONDS_BETWEEN_LINES = 1.0
# Below this width the bar and the task give way to the stage and the remaining time.
_NARROW_COLUMNS = 70


@contextmanager
def progress() -> Iterator[Callback | None]:
    """Yield what a run reports its steps to: the display of a terminal, JSON lines, or None."""
    console = messages()
    if logs_json():
        yield _Lines()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield None
    else:
        narrow = console.width < _NARROW_COLUMNS
        columns = [
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8 if narrow else 20),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(compact=True),
        ]
        with Progress(*columns, console=console, transient=True) as display:
            yield _Line(display, narrow=narrow)


class _Line:
    """One line of a terminal: stage, task, counts, incumbent and gap, remaining time."""

    def __init__(self, display: Progress, *, narrow: bool) -> None:
        self._display = display
        self._narrow = narrow
        self._task: TaskID = display.add_task("start", total=1.0, detail="")
        self._shown = ""

    def __call__(self, step: Step) -> None:
        title = describe(step, narrow=self._narrow)
        if title != self._shown:
            # Another task has another speed; the remaining time starts anew.
            self._display.reset(self._task, description=title, total=step.total, detail="")
            self._shown = title
        self._display.update(
            self._task, completed=step.done, total=step.total, detail="" if self._narrow else detail(step)
        )


class _Lines:
    """JSON lines: the beginning and the end of every stage and task, and a sign of life in between."""

    def __init__(self) -> None:
        self._last = ("", "")
        self._when = 0.0

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        changed = (step.stage, step.task) != self._last or step.share >= 1
        if not changed and now - self._when < _SECONDS_BETWEEN_LINES:
            return
        self._last, self._when = (step.stage, step.task), now
        fields: dict[str, str | float | None] = {"task": step.task, "done": step.done, "total": step.total}
        if step.stage_count:
            fields |= {"stage": step.stage, "stage_number": step.stage_number, "stage_count": step.stage_count}
        if step.incumbent is not None:
            fields |= {"incumbent": step.incumbent, "gap": step.gap}
        emit("progress", fields=fields)


def describe(step: Step, *, narrow: bool = False) -> str:
    """Return the stage and the task of a step in words."""
    number = f"[{step.stage_number}/{step.stage_count}] " if step.stage_count else ""
    stage = step.stage or step.task
    return f"{number}{stage}" if narrow or step.task == stage else f"{number}{stage}: {step.task}"


def detail(step: Step) -> str:
    """Return the counts of a step, and how a search stands."""
    parts = [f"{step.done:,.0f} of {step.total:,.0f}"] if step.total > 1 else []
    if step.incumbent is not None:
        parts.append(f"best {step.incumbent:.4g}")
    if step.gap is not None:
        # SCIP says infinite (1e20) while there is no bound.
        parts.append(f"gap {step.gap:.1%}" if step.gap < 10 else "no bound yet")
    return ", ".join(parts)
