"""The old import path of :mod:`pyro_naf.guides.special`, which pickled guides name."""

from ..guides.special import SpecialSites as SpecialSites
