"""The import path of :mod:`pyro_naf.guides.layout` that pickled guides of version 0.1 name."""

from ..guides.layout import Layout as Layout
from ..guides.layout import Place as Place
