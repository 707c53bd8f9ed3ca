"""Autoregressive conditioners: x_{<t} (and a context) to the pseudo-parameters of dimension t."""

from .attention import AttentionConditioner
from .graph import GraphConditioner
from .made import MADE
from .protocol import Sweep as Sweep
from .protocol import sweep as sweep
from .pyro_adapter import PyroConditioner
from .pyro_adapter import as_conditioner as as_conditioner
from .structure import Structure

__all__ = ["MADE", "AttentionConditioner", "GraphConditioner", "PyroConditioner", "Structure"]
