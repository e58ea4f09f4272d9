"""How far a model has loaded."""
from __future__ import annotations

import sys
from typing import Any, Callable

Progress = Callable[[int, int], Any]  # bytes loaded, an upper bound of them

_BYTES_WORTH_A_BAR = 500_000_000


class _Bar:
    def __init__(self, tqdm: Any) -> None:
        self.tqdm, self.bar = tqdm, None

    def __call__(self, loaded: int, total: int) -> None:
        if self.bar is None and total >= _BYTES_WORTH_A_BAR:
            self.bar = self.tqdm(total=total, desc="loading", unit="B", unit_scale=True)
        if self.bar is not None:
            self.bar.update(loaded - self.bar.n)

    def close(self) -> None:
        """What is said to be loaded in all is an upper bound: the bar ends when the model is."""
        if self.bar is not None:
            self.bar.update(self.bar.total - self.bar.n)
            self.bar.close()


def on_terminal() -> _Bar | None:
    """tqdm's bar where standard error is a terminal and tqdm is installed."""
    if not sys.stderr or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return _Bar(tqdm)
