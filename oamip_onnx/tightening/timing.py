"""Wall-clock time that several stages share."""

import time


class Budget:
    """Seconds that are counted from the start on.

    Parameters
    ----------
    seconds
        How many there are; 0 or less means none.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left; at most 0 once the budget is used up."""
        return self.seconds - self.spent
