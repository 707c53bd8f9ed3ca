"""The old import path of :mod:`pyro_naf.guides.angles`, which pickled guides name."""

from ..guides.angles import PERIODIC as PERIODIC
from ..guides.angles import OnePeriod as OnePeriod
