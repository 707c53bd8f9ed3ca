"""The eight-schools model, where it was in versions up to 0.2; see :mod:`.examples`."""

from .examples.eight_schools import (
    QUANTILE_LEVELS as QUANTILE_LEVELS,
)
from .examples.eight_schools import (
    REFERENCE as REFERENCE,
)
from .examples.eight_schools import (
    SIGMA as SIGMA,
)
from .examples.eight_schools import (
    Summary as Summary,
)
from .examples.eight_schools import (
    Y as Y,
)
from .examples.eight_schools import (
    funnel as funnel,
)
from .examples.eight_schools import (
    model as model,
)
