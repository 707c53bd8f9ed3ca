"""Neural autoregressive flows for Pyro: exact, invertible, on all of R^D.

A neural autoregressive flow is an autoregressive conditioner that reads x_{<t} (and a context) and
a monotone scalar transformer that maps x_t (Huang et al. 2018 [arXiv:1804.00779], eq. 3).
Importing the package also makes its transforms attributes of ``pyro.distributions.transforms``.
"""

from pyro.distributions import transforms as _pyro_transforms

from . import transforms
from .transforms import *  # noqa: F403

__version__ = "0.2.0"
__all__ = list(transforms.__all__)

for _name in transforms.__all__:
    # A name that Pyro or another package has put there stays theirs.
    if not hasattr(_pyro_transforms, _name):
        setattr(_pyro_transforms, _name, getattr(transforms, _name))
del _name, _pyro_transforms
