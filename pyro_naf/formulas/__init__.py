"""The maps of one dimension as pure functions of tensors; ``kernels`` evaluates them faster.

============== ==================================================================
sigmoidal      DSF and DDSF (Huang et al. 2018, eq. 8 and 9)
spec           the layout of their pseudo-parameters
affine         an affine map, and the bound on its log-scale
spline         the rational-quadratic spline (Durkan et al. 2019, eq. 4 to 8)
elementary     logarithms of sigmoids and sums, softplus and its inverse
============== ==================================================================
"""

from .sigmoidal import bracket as bracket
from .sigmoidal import evaluate as evaluate
from .sigmoidal import sigmoids as sigmoids
from .spec import SigmoidSpec as SigmoidSpec
