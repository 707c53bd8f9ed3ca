"""One progress bar for a whole refinement: it names the phase, and says what time is left."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from tqdm.auto import tqdm

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Progress:
    """A bar from 0 to 100 % of a budget, shown from its first moment on.

    :param is_shown: whether there is a bar at all.

    >>> with Progress(is_shown=False) as progress:
    ...     progress.phase("looking for modes")
    ...     progress.at("climbing", 0.5, {"ELBO": "-3.14"})
    """

    def __init__(self, is_shown: bool) -> None:
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
        self._bar.set_description_str(f"refine, {name}")

    def at(self, name: str, fraction: float, shown: Mapping[str, str]) -> None:
        """Say what goes on, which part of the budget is spent, and how it stands."""
        if self._bar.disable:
            return
        self._bar.set_description_str(f"refine, {name}", refresh=False)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(max(100.0 * min(fraction, 1.0) - self._bar.n, 0.0))
