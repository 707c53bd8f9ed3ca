"""The import path of :mod:`pyro_naf.guides.flat_priors` that pickled guides of version 0.1 name."""

from ..guides.flat_priors import start_flat_priors as start_flat_priors
