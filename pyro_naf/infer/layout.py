"""The old import path of :mod:`pyro_naf.guides.layout`, which pickled guides name."""

from ..guides.layout import Layout as Layout
from ..guides.layout import Place as Place
