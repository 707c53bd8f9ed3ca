"""The pictures of :mod:`pyro_naf.plot`, under the name that users import."""

from .plot.figures import *  # noqa: F403
from .plot.figures import __all__ as __all__
