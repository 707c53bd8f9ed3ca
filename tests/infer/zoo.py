"""Models as people write them for Pyro's NUTS, with no thought of extra batch axes.

Each is a `Case` of the registry `ZOO`, with its log evidence where closed forms, exact sums or
quadrature reach it. The models stand in the modules imported below, by theme.
"""

from __future__ import annotations

import zoo_applied  # noqa: F401
import zoo_discrete  # noqa: F401
import zoo_habits  # noqa: F401
import zoo_hierarchy  # noqa: F401
import zoo_incomplete  # noqa: F401
import zoo_language  # noqa: F401
import zoo_modules  # noqa: F401
import zoo_papers  # noqa: F401
import zoo_priors  # noqa: F401
import zoo_rare  # noqa: F401
import zoo_regression  # noqa: F401
import zoo_sequences  # noqa: F401
import zoo_series  # noqa: F401
from zoo_case import ZOO, Case, default_dtype, reference_log_joint

__all__ = ["ZOO", "Case", "default_dtype", "reference_log_joint"]
