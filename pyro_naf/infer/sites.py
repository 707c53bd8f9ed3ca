"""The old import path of :mod:`pyro_naf.guides.sites`, which pickled guides name."""

from ..guides.sites import Angles as Angles
from ..guides.sites import Latents as Latents
from ..guides.sites import Site as Site
from ..guides.sites import find_sites as find_sites
from ..guides.sites import latent_sites as latent_sites
from ..guides.sites import masked_out as masked_out
from ..guides.sites import plate_nesting as plate_nesting
from ..guides.sites import sample_sites as sample_sites
from ..guides.sites import site_log_probs as site_log_probs
