"""The centred eight-schools model, its data, and summaries of its reference draws.

It is the posterior `eight_schools-eight_schools_centered` of posteriordb. The funnel between the
school effects and their spread tau makes it hard for a Gaussian approximation, and small enough to
refine in seconds.

References:
1. Donald B. Rubin (1981), Estimation in parallel randomized experiments. Journal of Educational
   Statistics 6(4), 377-401.
2. Magnusson et al., posteriordb: a set of posteriors for Bayesian inference.
   https://github.com/stan-dev/posteriordb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch

#: Estimated effect of coaching in each school.
Y = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)

#: Standard error of each estimate, taken as known.
SIGMA = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def model(
    y: Sequence[float] | torch.Tensor | None = Y,
    sigma: Sequence[float] | torch.Tensor = SIGMA,
) -> torch.Tensor:
    """Centred parametrisation, in torch's default dtype.

    mu ~ Normal(0, 5), tau ~ HalfCauchy(5),
    theta_j ~ Normal(mu, tau), y_j ~ Normal(theta_j, sigma_j), j = 1, ..., J.

    :param y: observed effects (J,); None draws them from the prior predictive.
    :param sigma: their standard errors (J,).
    :returns: the school effects theta (..., J).
    """
    dtype = torch.get_default_dtype()
    sigma = torch.as_tensor(sigma, dtype=dtype)
    if y is not None:
        y = torch.as_tensor(y, dtype=dtype)
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma), dim=-1):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
    return theta


class Summary(NamedTuple):
    """Mean, standard deviation and quantiles (at :data:`QUANTILE_LEVELS`) of one parameter."""

    mean: float
    sd: float
    quantiles: tuple[float, ...]


#: 0, 2.5 %, 5 %, ..., 100 %: fine enough to draw a density, and coarse enough to print.
QUANTILE_LEVELS = tuple(i / 40 for i in range(41))

# Summaries of the 10,000 reference draws (10 chains of 1,000) of posteriordb,
# reference_posteriors/draws: eight_schools-eight_schools_noncentered, at commit
# 28f8d3d6e975315f42aa274a8399f21e07a43b30, BSD-3-Clause licence. The two parametrisations have one
# posterior; posteriordb names these draws as the reference of the centred one also.
_TABLE = """
             mu      tau theta[0] theta[1] theta[2] theta[3] theta[4] theta[5] theta[6] theta[7]
  mean    4.411    3.602    6.151    4.940    3.906    4.796    3.614    4.051    6.317    4.884
    sd    3.309    3.198    5.616    4.646    5.281    4.771    4.615    4.796    5.003    5.318
    0%   -8.522  0.00032  -23.755  -18.927  -32.913  -21.858  -20.021  -25.780  -15.375  -24.192
  2.5%   -1.974    0.115   -3.262   -3.876   -7.792   -4.620   -6.564   -6.181   -2.077   -5.490
    5%   -0.936    0.257   -1.681   -2.218   -4.914   -2.670   -4.265   -3.865   -0.855   -3.317
  7.5%   -0.247    0.389   -0.729   -1.210   -3.414   -1.632   -3.081   -2.589   -0.018   -1.974
   10%    0.255    0.515    0.104   -0.558   -2.299   -0.873   -2.166   -1.707    0.649   -1.084
 12.5%    0.642    0.646    0.681    0.051   -1.487   -0.183   -1.353   -1.014    1.171   -0.390
   15%    1.007    0.783    1.193    0.542   -0.871    0.313   -0.733   -0.482    1.580    0.158
 17.5%    1.320    0.901    1.596    0.979   -0.284    0.818   -0.270    0.056    1.976    0.686
   20%    1.626    1.014    1.979    1.378    0.223    1.246    0.163    0.488    2.354    1.097
 22.5%    1.917    1.144    2.329    1.723    0.662    1.616    0.615    0.896    2.683    1.475
   25%    2.183    1.278    2.657    2.042    1.075    1.926    0.959    1.248    2.999    1.821
 27.5%    2.412    1.424    2.984    2.358    1.390    2.225    1.309    1.561    3.303    2.174
   30%    2.647    1.563    3.256    2.642    1.751    2.519    1.624    1.926    3.585    2.501
 32.5%    2.903    1.708    3.546    2.911    2.066    2.823    1.908    2.225    3.877    2.800
   35%    3.108    1.843    3.838    3.190    2.377    3.080    2.205    2.503    4.138    3.114
 37.5%    3.321    1.982    4.105    3.470    2.686    3.364    2.496    2.776    4.409    3.384
   40%    3.533    2.121    4.423    3.734    3.006    3.630    2.782    3.082    4.724    3.660
 42.5%    3.752    2.254    4.727    3.986    3.281    3.907    3.055    3.368    5.004    3.922
   45%    3.943    2.419    5.013    4.254    3.540    4.180    3.306    3.641    5.273    4.219
 47.5%    4.160    2.588    5.301    4.514    3.821    4.436    3.561    3.891    5.529    4.505
   50%    4.364    2.747    5.589    4.773    4.105    4.695    3.820    4.162    5.795    4.785
 52.5%    4.557    2.927    5.850    5.038    4.386    4.968    4.088    4.412    6.057    5.026
   55%    4.803    3.129    6.154    5.287    4.687    5.242    4.333    4.695    6.326    5.317
 57.5%    5.010    3.334    6.447    5.553    4.943    5.507    4.601    4.975    6.614    5.585
   60%    5.219    3.523    6.730    5.827    5.221    5.809    4.887    5.256    6.926    5.877
 62.5%    5.437    3.749    7.048    6.131    5.533    6.090    5.142    5.533    7.204    6.195
   65%    5.650    3.967    7.400    6.392    5.841    6.378    5.427    5.825    7.529    6.480
 67.5%    5.891    4.209    7.718    6.677    6.127    6.644    5.684    6.113    7.855    6.777
   70%    6.122    4.446    8.068    7.006    6.436    6.968    5.971    6.424    8.192    7.123
 72.5%    6.375    4.692    8.437    7.319    6.720    7.279    6.269    6.718    8.584    7.471
   75%    6.640    4.966    8.844    7.632    7.113    7.613    6.548    7.077    8.994    7.858
 77.5%    6.905    5.311    9.269    7.984    7.516    7.974    6.888    7.428    9.431    8.223
   80%    7.198    5.660    9.794    8.411    7.912    8.371    7.276    7.821    9.926    8.627
 82.5%    7.517    6.059   10.308    8.803    8.316    8.811    7.658    8.180   10.391    9.053
   85%    7.878    6.516   10.928    9.376    8.806    9.290    8.073    8.615   11.085    9.555
 87.5%    8.253    7.062   11.743    9.946    9.308    9.869    8.549    9.119   11.858   10.160
   90%    8.698    7.721   12.770   10.618    9.893   10.576    9.094    9.769   12.708   10.935
 92.5%    9.186    8.538   14.206   11.523   10.736   11.496    9.804   10.503   13.937   12.077
   95%    9.832    9.732   16.329   12.817   11.844   12.639   10.603   11.516   15.305   13.550
 97.5%   10.925   11.984   20.044   14.824   13.640   14.633   12.257   13.156   18.065   15.819
  100%   19.469   33.246   38.810   29.231   36.136   26.871   24.534   27.341   33.999   54.048
"""


def _parse(table: str) -> dict[str, Summary]:
    names, mean, sd, *quantiles = (line.split() for line in table.strip().splitlines())
    columns = zip(mean[1:], sd[1:], zip(*(row[1:] for row in quantiles), strict=True), strict=True)
    return {
        name: Summary(float(m), float(s), tuple(map(float, q)))
        for name, (m, s, q) in zip(names, columns, strict=True)
    }


#: Reference summaries by parameter name, counted from zero: mu, tau, theta[0], ..., theta[7].
REFERENCE = _parse(_TABLE)


def funnel(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a picture of this posterior shows, from arrays named as in :data:`REFERENCE`.

    The logarithm of tau, against theta[0], shows the funnel.
    """
    shown = {name: columns[name] for name in ("theta[0]", "theta[4]", "mu")}
    return {"log tau": np.log(columns["tau"]), **shown}
