"""What a refinement found: as a table, and as files for further use."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import pyro_naf
from pyro_naf.examples.eight_schools import QUANTILE_LEVELS, Summary
from pyro_naf.plot.figures import plot_refinement
from pyro_naf.support.labels import scalar_parameters

if TYPE_CHECKING:
    from pyro_naf.infer import Correction, ImportanceDiagnostics, Refinement

#: All the files that a report may write.
FILES = ("draws.npz", "refinement.pt", "summary.json", "refine.png", "posterior.nc")

#: These, and what version 0.1 wrote.
OWNED = (*FILES, "guide.pt")

LEVELS = (0.025, 0.25, 0.5, 0.75, 0.975)
STATISTICS = ("mean", "sd", *(f"{100 * level:g}%" for level in LEVELS))

# A table longer than this is no longer read; summary.json holds everything.
TABLE_PARAMETERS = 40


def first_four(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the first four scalar parameters: what the picture of an unknown model shows."""
    return dict(list(columns.items())[:4])


@dataclass(frozen=True)
class RefinementReport:
    """A refinement, with draws of a Gaussian before it, of the guide after it, and of chains.

    :param title: the model's name.
    :param refinement: what :func:`~pyro_naf.infer.refine` returned.
    :param stages: "before", "after" and, where there was a correction, "exact" to draws ``(n,
        ...)`` by site.
    :param gaussian: diagnostics of the Gaussian that the draws before are of.
    :param correction: what :func:`~pyro_naf.infer.mcmc_correct` returned, if it was asked for.
    :param reference: summaries of the true posterior, by scalar parameter, where it is known.
    :param panels: selects (and may transform, monotonically) the scalar parameters to picture; the
        first two are also shown as a pair.
    :param settings: how the refinement was made, for the record.
    """

    title: str
    refinement: Refinement
    stages: Mapping[str, Mapping[str, torch.Tensor]]
    gaussian: ImportanceDiagnostics
    correction: Correction | None = None
    reference: Mapping[str, Summary] = field(default_factory=dict)
    panels: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = first_four
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def has_picture(self) -> bool:
        """Whether matplotlib is there to draw one."""
        return _is_there("matplotlib")

    @property
    def has_arviz(self) -> bool:
        """Whether ArviZ is there, and a package that it writes files by."""
        return any(map(_is_there, ("arviz", "arviz_base"))) and any(
            map(_is_there, ("h5netcdf", "netCDF4"))
        )

    @property
    def left_out(self) -> list[str]:
        """A sentence for each file that was not written, with the remedy."""
        picture = "The picture was left out; it needs matplotlib: pip install 'pyro_naf[plots]'"
        return [] if self.has_picture else [picture]

    @cached_property
    def statistics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean, sd and quantiles by scalar parameter and by stage, the reference the last."""
        columns = {stage: scalar_parameters(draws) for stage, draws in self.stages.items()}
        result = {}
        for name in columns["after"]:
            stages = {s: _statistics(known[name]) for s, known in columns.items() if name in known}
            if name in self.reference:
                stages["reference"] = _reference_statistics(self.reference[name])
            result[name] = stages
        return result

    def table(self) -> str:
        """List the statistics of every parameter, ELBO and k-hat before and after, the verdict."""
        rows = [["parameter", "", *STATISTICS]]
        for name, stages in list(self.statistics.items())[:TABLE_PARAMETERS]:
            decimals = _decimals(list(stages.values())[-1]["sd"])
            for stage, values in stages.items():
                label = name if stage == "before" else ""
                rows.append([label, stage, *(f"{values[key]:.{decimals}f}" for key in STATISTICS)])
        lines = [self.title, "", *_aligned(rows)]
        left_out = len(self.statistics) - TABLE_PARAMETERS
        if left_out > 0:
            lines.append(f"... and {left_out} parameters more, in summary.json")
        lines.append("")
        for stage, found in self._diagnostics.items():
            lines.append(f"{stage:<6}  ELBO {found.shown_elbo('±')}   k-hat {found.khat:.2f}")
        lines.append(self.refinement.judgement.text(command_line=True))
        if self.correction is not None:
            lines.append(f"exact   {self.correction.verdict}")
        return "\n".join(lines)

    @property
    def _diagnostics(self) -> dict[str, ImportanceDiagnostics]:
        return {"before": self.gaussian, "after": self.refinement.after}

    def summary(self) -> dict[str, object]:
        """All figures of the report, ready for JSON; those that are not finite become None."""
        diagnostics = ("elbo", "elbo_se", "khat", "ess", "log_evidence", "num_particles")
        result = {
            "pyro_naf": pyro_naf.__version__,
            "model": self.title,
            **self.settings,
            "steps": self.refinement.steps,
            "seconds": self.refinement.seconds,
            "verdict": self.refinement.judgement.text(command_line=True),
            **{
                stage: {key: getattr(found, key) for key in diagnostics}
                for stage, found in self._diagnostics.items()
            },
            "parameters": self.statistics,
            "losses": self.refinement.losses,
        }
        return {key: _finite(value) for key, value in result.items()}

    def write(self, folder: Path) -> None:
        """Write draws.npz, refinement.pt, summary.json and, where they can be, picture and ArviZ's.

        ``draws.npz`` holds ``before/<site>``, ``after/<site>`` and so on, ``refinement.pt`` what
        :meth:`~pyro_naf.infer.Refinement.load` reads, ``refine.png`` the picture (by matplotlib),
        and ``posterior.nc`` the exact draws, or else the guide's, for ArviZ.

        :raises OSError: if the folder cannot be written.
        """
        arrays = {
            f"{stage}/{site}": value.detach().cpu().numpy()
            for stage, draws in self.stages.items()
            for site, value in draws.items()
        }
        write: Callable[..., None] = np.savez_compressed
        write(folder / "draws.npz", **arrays)
        self.refinement.save(folder / "refinement.pt")
        summary = json.dumps(self.summary(), indent=1, allow_nan=False)
        (folder / "summary.json").write_text(summary + "\n", encoding="utf-8")
        if self.has_picture:
            self._draw(folder / "refine.png")
        if self.has_arviz:
            self._export(folder / "posterior.nc")

    def _export(self, path: Path) -> None:
        result = self.refinement if self.correction is None else self.correction
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ, of its next version
            try:
                data = result.to_arviz()
            except ValueError:  # no observation has a likelihood of its own
                data = result.to_arviz(log_likelihood=False)
            data.to_netcdf(str(path))

    def _draw(self, path: Path) -> None:
        stages = (self.stages[stage] for stage in ("before", "after"))
        before, after = (self.panels(scalar_parameters(draws)) for draws in stages)
        labels = list(after)
        quantiles = {name: np.array(known.quantiles) for name, known in self.reference.items()}
        figure = plot_refinement(
            before,
            after,
            self.refinement.losses,
            (self.gaussian.elbo, self.refinement.after.elbo),
            pair=(labels[0], labels[1]) if len(labels) > 1 else None,
            reference=self.panels(quantiles) if quantiles else None,
        )
        figure.savefig(path, dpi=120)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _statistics(draws: np.ndarray) -> dict[str, float]:
    draws = draws.astype(np.float64)
    values = (draws.mean(), draws.std(ddof=1), *np.quantile(draws, LEVELS))
    return dict(zip(STATISTICS, map(float, values), strict=True))


def _reference_statistics(known: Summary) -> dict[str, float]:
    quantiles = (known.quantiles[QUANTILE_LEVELS.index(level)] for level in LEVELS)
    return dict(zip(STATISTICS, (known.mean, known.sd, *quantiles), strict=True))


def _decimals(sd: float) -> int:
    """Three significant digits of the standard deviation are what the reader can use."""
    return min(max(2 - math.floor(math.log10(sd)), 0), 8) if 0 < sd < math.inf else 3


def _aligned(rows: list[list[str]]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(names + numbers))
    return lines


def _finite(value: object) -> object:
    """Replace NaN and infinity, which JSON cannot hold, by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
