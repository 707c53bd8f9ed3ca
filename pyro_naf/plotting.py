"""The pictures of :mod:`pyro_naf.plot`, under the name that users import."""

from .plot import checks, figures
from .plot.checks import *  # noqa: F403
from .plot.figures import *  # noqa: F403

__all__ = sorted([*checks.__all__, *figures.__all__])
