"""scikit-learn's own checks of an estimator, those that KernelDensity passes; and a grid search."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import estimator_checks_generator

from pyro_naf.density import FlowDensity

#: Checks that do not apply, and why.
OTHER_WAYS = {
    "check_no_attributes_set_in_init": "a torch module keeps its parts in attributes",
    "check_dont_overwrite_parameters": "a torch module's parts are fitted in place",
    "check_do_not_raise_errors_in_init_or_set_params": "wrong arguments are refused at once",
    "check_fit_score_takes_y": "the second argument is called context; y is its other name",
}


def checks() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        density = FlowDensity(architecture="gaussian", progress=False, seed=0)
        found = list(estimator_checks_generator(density, legacy=True))
    return [
        pytest.param(estimator, check, id=name)
        for estimator, check in found
        if (name := getattr(check, "func", check).__name__) not in OTHER_WAYS
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator, check", checks())
def test_scikit_learns_checks_pass(estimator: Any, check: Any) -> None:
    check(estimator)


def test_a_grid_search_chooses_the_learning_rate() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 2))
    rows[:, 1] += 3 * rows[:, 0] ** 2
    density = FlowDensity(architecture="maf-affine-1", max_steps=150, seed=0, progress=False)
    search = GridSearchCV(density, {"lr": [1e-7, 1e-2]}, cv=2).fit(rows)
    assert search.best_params_ == {"lr": 1e-2} and search.best_estimator_.n_features_in_ == 2


def test_labels_are_not_looked_at_and_a_vector_is_a_context_of_width_one() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    density = FlowDensity(architecture="gaussian", progress=False, seed=0)
    scores = [density.fit(rows, y).score(rows, y) for y in (None, rows[:, 0])]
    assert scores[0] == scores[1]
    given = FlowDensity(1, 1, "gaussian", progress=False, seed=0).fit(rows[:, :1], rows[:, 1])
    assert np.isfinite(given.score(rows[:, :1], y=rows[:, 1]))
    with pytest.raises(AttributeError, match="n_features_in_"):
        FlowDensity().n_features_in_  # noqa: B018
    with pytest.raises(AttributeError, match="feature_names_in_"):
        density.feature_names_in_  # noqa: B018
