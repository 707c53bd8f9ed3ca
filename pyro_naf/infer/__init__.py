"""Guides for SVI, their refinement, and how good they are."""

from .autoguides import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from .diagnostics import ImportanceDiagnostics, draws, importance_diagnostics
from .forward_kl import ForwardKL
from .refinement import Refinement, refine

__all__ = [
    "AutoDDSFNormal",
    "AutoDSFNormal",
    "AutoFlowNormal",
    "ForwardKL",
    "ImportanceDiagnostics",
    "Refinement",
    "draws",
    "importance_diagnostics",
    "refine",
]
