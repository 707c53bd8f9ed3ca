"""The old import path of :mod:`pyro_naf.guides.contexts`, which pickled guides name."""

from ..guides.contexts import ContextAffine as ContextAffine
