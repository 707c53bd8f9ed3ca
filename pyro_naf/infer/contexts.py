"""The import path of :mod:`pyro_naf.guides.contexts` that pickled guides of version 0.1 name."""

from ..guides.contexts import ContextAffine as ContextAffine
