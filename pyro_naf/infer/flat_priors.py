"""The old import path of :mod:`pyro_naf.guides.flat_priors`, which pickled guides name."""

from ..guides.flat_priors import start_flat_priors as start_flat_priors
