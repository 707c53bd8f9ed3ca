"""The flows by name, of one transformer each, and their conditional twins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..conditioners.protocol import Conditioner
from ..transformers import Affine, DeepDenseSigmoidal, DeepSigmoidal, Scaled, Transformer
from .autoregressive import AutoregressiveFlow, ConditionalAutoregressiveFlow

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..transformers.sigmoids import SigmoidOptions


class AffineAutoregressiveFlow(AutoregressiveFlow):
    r"""IAF and MAF: :math:`y_t = e^{s(x_{<t})} x_t + m(x_{<t})`, or the gated form.

    :param conditioner: gives (m, s), P = 2; as in :class:`AutoregressiveFlow`.
    :param gated: :math:`y_t = g_t x_t + (1 - g_t) m_t` (Kingma et al., eq. 10 to 14).
    :param gate_bias: as in :class:`~pyro_naf.transformers.Affine`.

    Source: Kingma et al. 2016 [arXiv:1606.04934]; Papamakarios et al. 2017 [arXiv:1705.07057].

    >>> import torch
    >>> from pyro_naf.conditioners import MADE
    >>> AffineAutoregressiveFlow(MADE(3, [16], num_params=2))(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self, conditioner: Conditioner, gated: bool = False, gate_bias: float = 2.0
    ) -> None:
        super().__init__(conditioner, Affine(gated, gate_bias))


class DeepSigmoidalFlow(AutoregressiveFlow):
    r"""DSF: :math:`y_t = \sigma^{-1}(w^T \sigma(a x_t + b))`, with (a, b, w) from the conditioner.

    :param conditioner: P = 3 * hidden_units; as in :class:`AutoregressiveFlow`.
    :param hidden_units: K, the number of sigmoids.
    :param affine: the conditioner also gives an affine map around the sigmoids, P = 3 K + 2; see
        :class:`~pyro_naf.transformers.Scaled`.
    :param kwargs: further arguments of :class:`~pyro_naf.transformers.DeepSigmoidal`.

    Source: Huang et al. 2018 [arXiv:1804.00779], eq. 8.

    >>> import torch
    >>> from pyro_naf.conditioners import MADE
    >>> DeepSigmoidalFlow(MADE(3, [16], num_params=24), hidden_units=8)(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        conditioner: Conditioner,
        hidden_units: int = 16,
        affine: bool = False,
        **kwargs: Unpack[SigmoidOptions],
    ) -> None:
        super().__init__(conditioner, _scaled(DeepSigmoidal(hidden_units, **kwargs), affine))


class DeepDenseSigmoidalFlow(AutoregressiveFlow):
    r"""DDSF: layers :math:`h^{l+1} = \sigma^{-1}(w\,\sigma(a \odot u\,h^l + b))` of sigmoids.

    :param conditioner: P = (4 num_layers - 1) hidden_units; as in :class:`AutoregressiveFlow`.
    :param hidden_units: K, the units of a layer.
    :param num_layers: L, the number of layers.
    :param affine: as in :class:`DeepSigmoidalFlow`; it adds 2 to P.
    :param kwargs: further arguments of :class:`~pyro_naf.transformers.DeepDenseSigmoidal`.

    Source: Huang et al. 2018 [arXiv:1804.00779], eq. 9.

    >>> import torch
    >>> from pyro_naf.conditioners import MADE
    >>> made = MADE(3, [16], num_params=7 * 8)
    >>> DeepDenseSigmoidalFlow(made, hidden_units=8, num_layers=2)(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        conditioner: Conditioner,
        hidden_units: int = 16,
        num_layers: int = 2,
        affine: bool = False,
        **kwargs: Unpack[SigmoidOptions],
    ) -> None:
        transformer = DeepDenseSigmoidal(hidden_units, num_layers, **kwargs)
        super().__init__(conditioner, _scaled(transformer, affine))


def _twin_of(flow: type[AutoregressiveFlow]) -> Callable[..., None]:
    """Make ``__init__`` of a flow's conditional twin, with the arguments of the flow's own."""
    make: Callable[..., AutoregressiveFlow] = flow

    @functools.wraps(flow.__init__)
    def __init__(self: ConditionalAutoregressiveFlow, *args: object, **kwargs: object) -> None:
        made = make(*args, **kwargs)
        ConditionalAutoregressiveFlow.__init__(self, made.arn, made.transformer)

    return __init__


class ConditionalAffineAutoregressiveFlow(ConditionalAutoregressiveFlow):
    """:class:`AffineAutoregressiveFlow` with a context; same arguments.

    >>> import torch
    >>> from pyro_naf.conditioners import MADE
    >>> made = MADE(3, [16], num_params=2, context_dim=2)
    >>> flow = ConditionalAffineAutoregressiveFlow(made).condition(torch.randn(2))
    >>> flow(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    __init__ = _twin_of(AffineAutoregressiveFlow)


class ConditionalDeepSigmoidalFlow(ConditionalAutoregressiveFlow):
    """:class:`DeepSigmoidalFlow` with a context; same arguments.

    A row of the context for each row of x:

    >>> import torch
    >>> from pyro_naf.conditioners import MADE
    >>> c, x = torch.randn(5, 2), torch.randn(5, 3)
    >>> made = MADE(3, [16], num_params=24, context_dim=2)
    >>> flow = ConditionalDeepSigmoidalFlow(made, hidden_units=8).condition(c)
    >>> y = flow(x)
    >>> torch.allclose(flow.inv(y), x, atol=1e-4)
    True
    """

    __init__ = _twin_of(DeepSigmoidalFlow)


class ConditionalDeepDenseSigmoidalFlow(ConditionalAutoregressiveFlow):
    """:class:`DeepDenseSigmoidalFlow` with a context; same arguments.

    >>> from pyro_naf.conditioners import MADE
    >>> import torch
    >>> made = MADE(3, [16], num_params=56, context_dim=2)
    >>> flow = ConditionalDeepDenseSigmoidalFlow(made, hidden_units=8).condition(torch.randn(2))
    >>> flow(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    __init__ = _twin_of(DeepDenseSigmoidalFlow)


def _scaled(transformer: DeepSigmoidal | DeepDenseSigmoidal, affine: bool) -> Transformer:
    return Scaled(transformer) if affine else transformer
