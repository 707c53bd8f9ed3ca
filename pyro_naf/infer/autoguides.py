"""The guides by name: a flow on a standard normal, behind a trainable loc and scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyro
from numpy.typing import ArrayLike
from pyro.distributions.conditional import ConditionalComposeTransformModule
from pyro.distributions.torch_transform import ComposeTransformModule, TransformModule
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor, nn

from ..conditioners import Structure
from ..guides.amortised import AmortisedFlowNormal
from ..guides.structured import structured_flows
from ..support.calls import Args, Kwargs, Model
from ..support.checks import check_integers
from ..transforms import (
    DeepDenseSigmoidalFlow,
    DeepSigmoidalFlow,
    conditional_deep_dense_sigmoidal_flow,
    conditional_deep_sigmoidal_flow,
    deep_dense_sigmoidal_flow,
    deep_sigmoidal_flow,
)
from .graph import check_structure, structure_of
from .joint import Joint


class AutoFlowNormal(AmortisedFlowNormal):
    r"""The posterior approximated by :math:`z = \mathrm{loc} + S f(\epsilon)`, f any flow.

    :math:`\epsilon \sim N(0, I)`; S is diagonal, or lower triangular with ``full_rank``. A flow
    that starts near the identity makes the guide start as an
    :class:`~pyro.infer.autoguide.AutoDiagonalNormal` (``AutoMultivariateNormal``) with the same
    loc and scale. Sampling, and scoring one's own samples, is one pass; scoring anything else
    runs the flow's inverse.

    With ``inverse`` the flow maps latents to :math:`\epsilon`: :math:`z = \mathrm{loc} + S
    f^{-1}(\epsilon)`. Then scoring anything is one pass, and drawing runs the inverse. An
    autoregressive flow's conditionals are mixtures then, with as little as one likes between their
    parts: this is for several modes, and for :class:`~pyro_naf.infer.ForwardKL`.

    A flow of sigmoids is linear far out, so that the guide's tails are a normal's. With
    ``heavy_tails`` each entry of :math:`\epsilon` passes Tukey's h map first
    (:class:`~pyro_naf.flows.heavy_tails.TukeyH`): :math:`z = \mathrm{loc} + S f(\epsilon\,
    e^{h \epsilon^2 / 2})`, with the tails of Student's t with 1/h degrees of freedom. The
    tail indices h in (0, 1) are trained, as ``tail_index``, from about zero on.

    With a ``context_fn``, the flow, loc and S depend on the data: what it returns for the arguments
    is the context c of a conditional flow, :math:`z = \mathrm{loc} + m(c) + \mathrm{diag}(e^{s(c)})
    S f(\epsilon; c)`, and the guide is the posterior for any data set that it was trained on the
    likes of (Trace_ELBO, or :class:`~pyro_naf.infer.ForwardKL` on simulated data). The context has
    shape ``(C,)``, or an axis for each of the outermost plates around all latents, such as
    ``(B, C)``: then the latents of each element have a density of their own, D counts the
    latents of one element, and B may change from call to call. The arguments hold rows of all
    elements of the plate, of which the guide takes a subsample, or of the subsample alone, as a
    minibatch does.

    All parameters exist after ``_setup_prototype``, with dtype and device of the model's latents.
    A value in Pyro's param store wins over the module's, as for all of Pyro's guides; whichever it
    is, it is trained.

    :param model: a Pyro model with continuous latents of fixed shape.
    :param transform_fn: called with the latent dimension D, returns a transform of R^D.
    :param full_rank: a lower triangular S instead of a diagonal one.
    :param inverse: the flow maps latents to base, and not base to latents.
    :param heavy_tails: tails as heavy as Student's t has.
    :param init_loc_fn: a per-site initialisation function of Pyro's. Where it would have to sample
        an ``ImproperUniform`` prior, the site starts at zero, unconstrained.
    :param init_scale: initial scale > 0 of every unconstrained latent.
    :param context_fn: maps the model's arguments to a context ``(..., C)``; best standardised. A
        module is trained with the guide.
    :param context_dim: C. With a context, ``transform_fn(D, C)`` returns a conditional transform.
    :param create_plates: as for Pyro's guides: maps the model's arguments to the plates of this
        call. Without it a new number of rows makes the guide run the model for its plates' sizes.
    :raises ValueError: when ``init_scale`` is not positive, or only one of ``context_fn`` and
        ``context_dim`` is given; when called, for a start that is not inside of the support, for a
        context that is not finite, or whose shape does not fit ``context_dim`` and the plates
        around the latents.
    :warns UserWarning: when the model's log-density is not finite at the start, naming the sites.
    :raises NotImplementedError: for latents local to a subsampled plate, whose number changes,
        unless the context has an axis for it.

    >>> import torch, pyro, pyro.distributions as dist
    >>> from pyro_naf import deep_sigmoidal_flow
    >>> def model():
    ...     return pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> guide = AutoFlowNormal(model, deep_sigmoidal_flow)
    >>> sorted(guide())
    ['x']

    A posterior for each row y of any number of them:

    >>> pyro.clear_param_store()  # of the guide before, which has the same name
    >>> from pyro_naf import conditional_deep_sigmoidal_flow
    >>> def model(y):
    ...     with pyro.plate("sets", len(y)):
    ...         x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...         pyro.sample("y", dist.Normal(x.unsqueeze(-1), 1.0).to_event(1), obs=y)
    >>> guide = AutoFlowNormal(
    ...     model, conditional_deep_sigmoidal_flow, context_fn=lambda y: y, context_dim=3
    ... )
    >>> guide(torch.randn(5, 3))["x"].shape, guide(torch.randn(7, 3))["x"].shape
    (torch.Size([5]), torch.Size([7]))
    """

    def _joint(self, args: Args, kwargs: Kwargs) -> Joint:
        return Joint(self.model, args, kwargs)


class _AutoStackNormal(AutoFlowNormal):
    """A stack of flows, alternately in natural and reversed order."""

    _asked_structure: str | Structure
    _factory: Callable[..., TransformModule]
    _conditional_factory: Callable[..., TransformModule]
    _flow: type[DeepSigmoidalFlow] | type[DeepDenseSigmoidalFlow]

    def __init__(  # noqa: PLR0913
        self,
        model: Model,
        *,
        structure: str | Structure | ArrayLike | Tensor = "full",
        num_transforms: int = 2,
        hidden_dims: Sequence[int] | None = None,
        hidden_units: int = 16,
        init_loc_fn: Callable[..., Tensor] = init_to_median,
        init_scale: float = 0.1,
        full_rank: bool = False,
        inverse: bool = False,
        heavy_tails: bool = False,
        affine: bool | None = None,
        context_fn: Callable[..., Tensor] | None = None,
        context_dim: int = 0,
        create_plates: Callable[..., pyro.plate | Sequence[pyro.plate]] | None = None,
        **kw: object,
    ) -> None:
        if context_dim and not (isinstance(structure, str) and structure == "full"):
            raise ValueError("structure must be 'full' for a guide with a context")
        self._asked_structure = check_structure(structure)
        factory = self._conditional_factory if context_dim else self._factory
        # With a context its affine map does that, and holds for contexts far from those seen.
        if affine and context_dim:
            raise ValueError(
                "affine must be None or False for a guide with a context, whose own affine map "
                "depends on the context already, got True"
            )
        affine = not context_dim if affine is None else affine
        options = dict(hidden_dims=hidden_dims, hidden_units=hidden_units, affine=affine, **kw)
        self._options = dict(options, num_transforms=num_transforms, inverse=inverse)
        factory = partial(factory, **options)
        super().__init__(
            model,
            _Stack(factory, num_transforms),
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            full_rank=full_rank,
            inverse=inverse,
            heavy_tails=heavy_tails,
            context_fn=context_fn,
            context_dim=context_dim,
            create_plates=create_plates,
        )

    def _find_structure(self, args: Args, kwargs: Kwargs) -> Structure | None:
        middle = self.loc.detach()
        return structure_of(self._asked_structure, lambda: self._joint(args, kwargs), middle)

    def _make_flow(self) -> TransformModule:
        if self.structure is None:
            return super()._make_flow()
        make: Callable[..., ComposeTransformModule] = structured_flows
        return make(self._flow, self.structure, **self._options)


class AutoDSFNormal(_AutoStackNormal):
    """A stack of deep sigmoidal flows behind a trainable loc and scale.

    The flows run through the latents alternately in natural and reversed order. With a structure,
    they run in its order, each latent reads its ancestors only, and the affine map has this pattern
    too: nothing is lost, and hundreds of latents are no obstacle (see
    :class:`~pyro_naf.conditioners.Structure`).

    :param model: as in :class:`AutoFlowNormal`.
    :param structure: "full"; "auto", which looks for the structure of the model's log-density at
        set-up and takes it where it pays, from 30 latents on; an adjacency ``(D, D)`` of the
        unconstrained latents, in the order of the latent vector; or a
        :class:`~pyro_naf.conditioners.Structure`. Not for a guide with a context.
    :param num_transforms: number of flows >= 1.
    :param hidden_dims: hidden widths of the conditioners, see
        :func:`~pyro_naf.transforms.deep_sigmoidal_flow`.
    :param hidden_units: K, the number of sigmoids.
    :param init_loc_fn: as in :class:`AutoFlowNormal`.
    :param init_scale: as there.
    :param full_rank: as there, as are ``inverse``, ``heavy_tails``, ``context_fn``,
        ``context_dim`` and ``create_plates``.
    :param affine: each conditioner gives an affine map around the sigmoids too, which funnels need.
        By default without a context; with one, whose affine map takes its place, True is an error.
    :param kw: further arguments of :func:`~pyro_naf.transforms.deep_sigmoidal_flow`, such as
        ``conditioner="attention"``.
    :raises ValueError: as there, when ``num_transforms`` is below 1, for a structure that is no
        adjacency, and at set-up for one of another size than the model's latents.

    >>> import torch, pyro, pyro.distributions as dist
    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro.optim import Adam
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(x.abs(), 0.3), obs=torch.tensor(1.0))
    >>> guide = AutoDSFNormal(model)
    >>> svi = SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO())
    >>> loss = svi.step()
    >>> sorted(guide.median())
    ['x']
    """

    _flow = DeepSigmoidalFlow
    _factory = staticmethod(deep_sigmoidal_flow)
    _conditional_factory = staticmethod(conditional_deep_sigmoidal_flow)


class AutoDDSFNormal(_AutoStackNormal):
    """A stack of deep dense sigmoidal flows; arguments of :class:`AutoDSFNormal`.

    :param kw: further arguments of :func:`~pyro_naf.transforms.deep_dense_sigmoidal_flow`, such as
        ``num_layers``, the dense layers of each transformer.

    >>> import pyro, pyro.distributions as dist
    >>> guide = AutoDDSFNormal(lambda: pyro.sample("x", dist.Gamma(2.0, 1.0)), num_layers=2)
    >>> sorted(guide())
    ['x']
    """

    _flow = DeepDenseSigmoidalFlow
    _factory = staticmethod(deep_dense_sigmoidal_flow)
    _conditional_factory = staticmethod(conditional_deep_dense_sigmoidal_flow)


class _Stack:
    """Flows alternately in natural and reversed order; a class, so that guides can be pickled."""

    def __init__(self, factory: Callable[..., TransformModule], num_transforms: int) -> None:
        check_integers(num_transforms=(num_transforms, 1))
        self.factory, self.num_transforms = factory, num_transforms

    def __call__(self, dim: int, *context_dim: int) -> nn.Module:
        orders = [("natural", "reversed")[i % 2] for i in range(self.num_transforms)]
        flows = [self.factory(dim, *context_dim, order=order) for order in orders]
        if context_dim:
            return ConditionalComposeTransformModule(flows)
        return ComposeTransformModule(flows)
