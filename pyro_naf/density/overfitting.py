"""Whether flows overfitted: how far their validation likelihood fell from its best value."""

from __future__ import annotations

from collections.abc import Sequence

from .settings import History

#: Fall of the validation log-likelihood, in nats, from the best weights to the last ones that is
#: reported as overfitting.
OVERFIT = 0.1


def drop(history: History) -> tuple[float, float]:
    """Return the validation likelihood of the best weights, and of the last."""
    values = [v for e in history.evaluations if (v := e["validation"]) is not None]
    return max(values), values[-1]


def sentence(drops: Sequence[tuple[float, float]]) -> str | None:
    """Return what there is to say of overfitting, or None.

    :param drops: :func:`drop` of each flow.
    """
    fallen = [best - last for best, last in drops if last < best - OVERFIT]
    if len(fallen) * 2 <= len(drops) or not fallen:
        return None
    return (
        f"{len(fallen)} of {len(drops)} flows began to overfit before training ended: the "
        f"validation log-likelihood fell by up to {max(fallen):.2f} nats; the best were kept"
    )
