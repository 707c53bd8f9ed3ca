"""Autoregressive conditioners: x_{<t} (and a context) to the pseudo-parameters of dimension t."""

from .made import MADE
from .protocol import Sweep, check_overrides, is_unchanged, sweep
from .pyro_adapter import PyroConditioner, as_conditioner

__all__ = [
    "MADE",
    "PyroConditioner",
    "Sweep",
    "as_conditioner",
    "check_overrides",
    "is_unchanged",
    "sweep",
]
