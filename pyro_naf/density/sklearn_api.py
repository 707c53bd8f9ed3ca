"""What scikit-learn asks of an estimator: parameters, tags, and an error where none is fitted."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .architectures import parse
from .closed_form import CLOSED
from .options import Options
from .settings import History, Training

if TYPE_CHECKING:
    from sklearn.utils import Tags

#: Arguments of the constructor that say how a density is fitted, and what they are by default.
SETTINGS: dict[str, Any] = {
    "columns": None,
    "validation": 0.1,
    **{option.name: option.default for option in fields(Training)},
    "seed": None,
}


def not_fitted(name: str) -> Exception:
    """scikit-learn's NotFittedError, where it is installed; else a ValueError of that text."""
    message = f"{name} is not fitted yet: call fit with rows first"
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError(message)
    return NotFittedError(message)


class Estimator:
    """The part of a density that scikit-learn calls."""

    input_dim: int | None
    context_dim: int
    architecture: str
    overrides: dict[str, object]
    settings: dict[str, object]
    history: History | None
    columns: list[str] | None
    width: int

    def get_params(self, deep: bool = True) -> dict[str, object]:
        """Return the arguments of the constructor, with all options.

        >>> from pyro_naf.density import FlowDensity
        >>> FlowDensity(2, hidden_dims=[16], lr=1e-2).get_params()["lr"]
        0.01
        """
        return {
            "input_dim": self.input_dim,
            "context_dim": self.context_dim,
            "architecture": self.architecture,
            **{field.name: field.default for field in fields(Options)},
            **self.overrides,
            **SETTINGS,
            **self.settings,
        }

    def _changed(self, params: dict[str, object]) -> dict[str, object]:
        """Return the constructor's arguments with some changed, without those left at defaults."""
        said = {"input_dim", "context_dim", "architecture", *self.overrides, *self.settings}
        whole = {name: value for name, value in self.get_params().items() if name in said}
        return {**whole, **params}

    @property
    def n_features_in_(self) -> int:
        """The number of columns of the rows that the density was fitted to."""
        if self.history is None:
            raise AttributeError("n_features_in_ is known after fit")
        return self.width

    @property
    def feature_names_in_(self) -> np.ndarray:
        """The names of these columns, where they have any."""
        if self.history is None or self.columns is None:
            raise AttributeError("feature_names_in_ is known after a fit to named columns")
        return np.array(self.columns, object)

    def __sklearn_tags__(self) -> Tags:
        from sklearn.utils import InputTags, Tags, TargetTags

        gaps = self.context_dim == 0 and parse(self.architecture)[0] in ("auto", *CLOSED)
        return Tags(
            "density_estimator",
            TargetTags(required=False),
            input_tags=InputTags(allow_nan=gaps),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return self.history is not None
