"""Guides for SVI, their refinement, and how good they are."""

from .autoguides import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from .calibration import Calibration, sbc
from .compiled_svi import CompiledSVI
from .correction import Correction, mcmc_correct
from .diagnostics import ImportanceDiagnostics, draws, importance_diagnostics, importance_resample
from .elbos import TraceDReG_ELBO, TraceSTL_ELBO
from .embeddings import NormalScores, SetEncoder, Standardize
from .forward_kl import ForwardKL
from .gaussian import fit_gaussian
from .loo import Comparison, Loo, compare, psis_loo
from .posterior import Posterior
from .refinement import Refinement, refine
from .sbi_adapter import sbi_estimator
from .settings import RefineSettings
from .simulations import SimulationFit, fit_simulations
from .summaries import Summary

__all__ = [
    "AutoDDSFNormal",
    "AutoDSFNormal",
    "AutoFlowNormal",
    "Calibration",
    "Comparison",
    "CompiledSVI",
    "Correction",
    "ForwardKL",
    "ImportanceDiagnostics",
    "Loo",
    "NormalScores",
    "Posterior",
    "RefineSettings",
    "Refinement",
    "SetEncoder",
    "SimulationFit",
    "Standardize",
    "Summary",
    "TraceDReG_ELBO",
    "TraceSTL_ELBO",
    "compare",
    "draws",
    "fit_gaussian",
    "fit_simulations",
    "importance_diagnostics",
    "importance_resample",
    "mcmc_correct",
    "psis_loo",
    "refine",
    "sbc",
    "sbi_estimator",
]
