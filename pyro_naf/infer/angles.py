"""The import path of :mod:`pyro_naf.guides.angles` that pickled guides of version 0.1 name."""

from ..guides.angles import PERIODIC as PERIODIC
from ..guides.angles import OnePeriod as OnePeriod
