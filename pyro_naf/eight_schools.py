"""The eight-schools model, where it was in versions up to 0.2; see :mod:`.examples`."""

from .examples.eight_schools import *  # noqa: F403
