"""One progress bar for a whole refinement: it names the phase, and says what time is left."""

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

    >>> with Progress(is_shown=False) as progress:
    ...     progress.phase("looking for modes")
    ...     progress.at("climbing", 0.5, {"ELBO": "-3.14"})
    """

    def __init__(self, is_shown: bool, seconds: float | None = None) -> None:
        self.seconds, self._start = seconds, time.monotonic()
        self._name = ""
        self._bar = tqdm(total=100.0, disable=not is_shown, desc="refine", bar_format=_FORMAT)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and not self._bar.disable:
            self._bar.set_description_str("refine, done", refresh=False)
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
        left = f", {tqdm.format_interval(elapsed / fraction - elapsed)} left" if fraction else ""
        self._bar.set_description_str(f"refine, {name}{left}", refresh=False)
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(max(100.0 * fraction - self._bar.n, 0.0))
        if name != self._name:
            self._name = name
            self._bar.refresh()
