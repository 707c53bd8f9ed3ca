"""The import path of :mod:`pyro_naf.guides.special` that pickled guides of version 0.1 name."""

from ..guides.special import SpecialSites as SpecialSites
