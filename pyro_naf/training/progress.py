"""One progress bar for a whole call: it names the phase, and says what time is left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from tqdm.auto import tqdm

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


class Progress:
    """A bar from 0 to 100 % of a budget, shown from its first moment on.

    :param is_shown: whether there is a bar at all.
    :param seconds: time for all of it, where that is limited.
    :param name: what the bar is of.
    :param done: part that an earlier process has done.

    >>> with Progress(is_shown=False) as progress:
    ...     progress.phase("looking for modes")
    ...     progress.at("climbing", 0.5, {"ELBO": "-3.14"})
    """

    def __init__(
        self,
        is_shown: bool,
        seconds: float | None = None,
        name: str = "refine",
        done: float = 0.0,
    ) -> None:
        self.name, self.seconds, self._start = name, seconds, time.monotonic()
        self._done = done
        self._phase = ""
        self._bar = tqdm(total=100.0, disable=not is_shown, desc=name, bar_format=_FORMAT)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and not self._bar.disable:
            self._bar.set_description_str(f"{self.name}, done", refresh=False)
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()

    def phase(self, name: str) -> None:
        """Say what begins now."""
        self.at(name, 0.0, {})

    def at(self, name: str, fraction: float, shown: Mapping[str, str]) -> None:
        """Say what goes on, which part of the steps are made, and how it stands."""
        if self._bar.disable:
            return
        elapsed = time.monotonic() - self._start
        if self.seconds is not None:
            fraction = max(fraction, elapsed / self.seconds)
        fraction = min(fraction, 1.0)
        here = fraction - self._done
        left = f", {tqdm.format_interval(elapsed / here * (1 - fraction))} left" if here > 0 else ""
        phase = f", {name}" if name else ""
        self._bar.set_description_str(f"{self.name}{phase}{left}", refresh=False)
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(max(100.0 * fraction - self._bar.n, 0.0))
        if name != self._phase:
            self._phase = name
            self._bar.refresh()
