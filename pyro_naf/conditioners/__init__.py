"""Autoregressive conditioners: x_{<t} (and a context) to the pseudo-parameters of dimension t."""

from .graph import GraphConditioner
from .made import MADE
from .protocol import Sweep, sweep
from .pyro_adapter import PyroConditioner, as_conditioner
from .structure import Structure

__all__ = [
    "MADE",
    "GraphConditioner",
    "PyroConditioner",
    "Structure",
    "Sweep",
    "as_conditioner",
    "sweep",
]
