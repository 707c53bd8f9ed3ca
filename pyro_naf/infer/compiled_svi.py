"""SVI whose step is one compiled graph: model, guide, loss and gradients, without their Python."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.util import torch_item, zero_grads
from torch import Tensor

from ..guides.pyro_internals import handlers_are_active
from ..support.calls import Args, Model
from ..support.seeding import foreign_generators, generators, set_generators
from .capture import check_equal
from .compilation import is_enabled
from .draw_inputs import NotCaptured
from .fused import FusedOptimiser
from .step_graph import Losses
from .step_plan import (
    PROOFS,
    Arguments,
    Loss,
    Plan,
    are_close,
    flat_losses,
    in_form_of,
    modules_called,
)

#: Largest number of graphs: one for each shape of the arguments, and for each value of their
#: numbers.
_MOST_GRAPHS = 16


class CompiledSVI(SVI):
    r"""Pyro's :class:`~pyro.infer.SVI`, whose steps cost their arithmetic and little more.

    A step of SVI estimates the gradient of
    :math:`-\mathrm{E}_{q_\theta}[\log p(x, z) - \log q_\theta(z)]` and lets the optimiser move
    :math:`\theta`. Nearly all its time is Python: handlers, distributions, an optimiser for each
    parameter. Here the first steps are SVI's own. Beside them the step is captured as a graph of
    operators, which is compared with SVI, draw for draw, on steps that it was not captured with.
    From then on steps run the graph; another process compiles it meanwhile, and steps switch over.
    The compiled graph is kept on disk for the next process.

    Losses, gradients, parameters and the optimiser's state are SVI's to rounding, from the same
    seed too: random numbers, subsamples of plates included, are drawn anew in each step, outside of
    the graph. Tensors among the arguments are inputs of the graph. One graph serves all minibatches
    of a shape; numbers and strings among the arguments have a graph for each value. The model
    and the guide are not run in every step: what they print or count, they print or count no more.

    Discrete latents that :class:`~pyro.infer.TraceEnum_ELBO` enumerates in the model, in plates and
    in Markov chains, are summed out in the graph; discrete latents of a guide are left to SVI.

    What cannot be captured is run by SVI, with a warning that says why, once; :attr:`why_not` holds
    the reason. Such are control flow that depends on values, changes of tensors in place (as in
    BatchNorm), random numbers of NumPy, and hooks on parameters. A loss that is not finite is
    computed again by SVI, whose errors name the site. After 10, 100 and each 1000 steps the graph
    is compared with SVI again, as it is when the model seems to have exchanged a tensor that is no
    argument. Inside other effect handlers, and under autocast, steps are SVI's.

    :param model: as for SVI, as are ``guide``, ``optim`` and ``loss``.
    :param guide: any guide, Pyro's autoguides included.
    :param optim: a :class:`~pyro.optim.PyroOptim`. Adam, AdamW and ClippedAdam move all parameters
        in one call.
    :param loss: an :class:`~pyro.infer.ELBO` or a function of model, guide and arguments.
    :param compile: whether captured graphs are compiled, too.
    :param kwargs: further arguments of SVI.
    :ivar why_not: why steps are plain SVI's, or None.
    :raises ValueError: as SVI does, when ``optim`` is no PyroOptim.

    Set PYRO_NAF_COMPILE=0 to run SVI's own steps only.

    >>> import pyro.distributions as dist
    >>> from pyro.infer import Trace_ELBO
    >>> from pyro.infer.autoguide import AutoNormal
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("rows", len(y)):
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> adam = pyro.optim.Adam({"lr": 0.05})
    >>> svi = CompiledSVI(model, AutoNormal(model), adam, Trace_ELBO())
    >>> losses = [svi.step(torch.tensor([1.0, 2.0, 3.0])) for _ in range(10)]
    >>> svi.rung in ("captured", "captured and compiled")
    True
    """

    def __init__(
        self,
        model: Model,
        guide: Model,
        optim: pyro.optim.PyroOptim,
        loss: Callable[..., object],
        compile: bool = True,
        **kwargs: object,
    ) -> None:
        super().__init__(model, guide, optim, loss, **kwargs)
        self.compile = compile
        self.why_not: str | None = None if is_enabled() else "PYRO_NAF_COMPILE=0"
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._last: Plan | None = None

    @property
    def rung(self) -> str:
        """How the last step ran: "plain", "captured", or "captured and compiled"."""
        if self._last is None or not self._last.is_proven:
            return "plain"
        assert self._last.graph is not None
        return "captured and compiled" if self._last.graph.is_compiled else "captured"

    def step(self, *args: object, **kwargs: object) -> Loss:
        """Take a step of the optimiser; returns the loss before it, as SVI does."""
        arguments = self._arguments(args, kwargs)
        if arguments is None:
            self._last = None
            return super().step(*args, **kwargs)
        plan = self._last = self._plan(arguments)
        if not plan.is_current():
            plan.forget()
            plan.forgotten += 1
            if plan.forgotten >= _MOST_GRAPHS:
                self._give_up("parameters are exchanged, or modules switched, again and again")
                return super().step(*args, **kwargs)
        return (self._proof if plan.is_due() else self._quick)(plan, arguments)

    def evaluate_loss(self, *args: object, **kwargs: object) -> Loss:
        """Estimate the loss, as SVI does, without a step."""
        arguments = self._arguments(args, kwargs)
        plan = None if arguments is None else self._plans.get(arguments.key)
        if arguments is None or plan is None or not (plan.is_proven and plan.is_current()):
            return super().evaluate_loss(*args, **kwargs)
        assert plan.graph is not None
        before = generators()
        try:
            found = [float(loss) for loss in plan.graph(arguments.tensors)[0]]
        except RuntimeError:  # SVI says what is wrong
            found = [math.nan]
        if plan.evaluations >= PROOFS and all(map(math.isfinite, found)):
            return in_form_of(plan.losses, found)
        after = generators()
        set_generators(before)
        loss = super().evaluate_loss(*args, **kwargs)
        # SVI evaluates an ELBO whose loss differs from the one that its gradients come from.
        same = all(map(torch.equal, generators(), after)) and are_close(
            found, [float(one) for one in flat_losses(loss)]
        )
        plan.evaluations = plan.evaluations + 1 if same else -(10**9)
        return loss

    # ------------------------------------------------------------------------------ kinds of steps

    def _quick(self, plan: Plan, arguments: Arguments) -> Loss:
        """Make a step by the graph."""
        assert plan.graph is not None
        if plan.optimiser is None:
            plan.optimiser = FusedOptimiser(self.optim, plan.graph.params)
        before = generators()
        try:
            losses, grads = plan.graph(arguments.tensors)
            found = [float(loss) for loss in losses]
        except RuntimeError as error:
            set_generators(before)
            loss = super().step(*arguments.args, **arguments.kwargs)  # raises what is wrong
            self._give_up(f"the graph failed ({error})")
            return loss
        if not all(map(math.isfinite, found)):
            set_generators(before)
            return super().step(*arguments.args, **arguments.kwargs)
        plan.optimiser.step(grads)
        plan.steps += 1
        self._compile_beside(plan)
        return in_form_of(plan.losses, found)

    def _proof(self, plan: Plan, arguments: Arguments) -> Loss:
        """Make a step by SVI, and compare the graph with it: loss, gradients, draws."""
        before, foreign = generators(), foreign_generators()
        with modules_called(plan.modules), poutine.trace(param_only=True) as capture:
            loss = self.loss_and_grads(self.model, self.guide, *arguments.args, **arguments.kwargs)
        after = generators()
        params = _distinct(
            {n: site["value"].unconstrained() for n, site in capture.trace.nodes.items()}
        )
        try:
            if foreign != foreign_generators():
                raise NotCaptured(
                    "the model or guide draws random numbers from NumPy or from Python's random; "
                    "draw them from torch"
                )
            if plan.steps > 0:
                set_generators(before)
                self._compare(plan, arguments, params, loss)
        except NotCaptured as error:
            self._give_up(str(error))
        finally:
            set_generators(after)
        self.optim(set(params.values()))
        zero_grads(set(params.values()))
        plan.losses = loss
        plan.steps += 1
        return in_form_of(loss, [torch_item(one) for one in flat_losses(loss)])

    def _compare(
        self, plan: Plan, arguments: Arguments, params: dict[str, Tensor], loss: Loss
    ) -> None:
        """Capture the graph, if there is none yet, or else compare it with this step."""
        if plan.graph is None:
            plan.capture(self._function(arguments, params), params, arguments.tensors)
            self._compile_beside(plan)
            return
        try:
            found, grads = plan.graph(arguments.tensors, compiled=False)
        except RuntimeError as error:
            raise NotCaptured(f"the captured graph fails: {error}") from error
        if any(params.get(name) is not p for name, p in plan.graph.params.items()):
            raise NotCaptured("the parameters are other ones from step to step")
        pairs = zip(flat_losses(loss), found, strict=True)
        expected = {name: p.grad for name, p in params.items() if p.grad is not None}
        try:
            check_equal(found, [f.new_tensor(torch_item(one)) for one, f in pairs])
            check_equal(grads.values(), [expected.pop(name) for name in grads])
            if expected:
                raise RuntimeError("more parameters have a gradient than in the graph")
        except (RuntimeError, KeyError) as error:
            raise NotCaptured(
                "the captured graph and SVI disagree: the model or guide changes from step to step "
                "by something that is no tensor among its arguments; give it as such an argument"
            ) from error
        plan.holders = plan.count_holders()

    def _function(self, arguments: Arguments, params: dict[str, Tensor]) -> Losses:
        """Losses and gradients from the tensors among the arguments, for a graph."""

        def function(
            tensors: list[Tensor],
        ) -> tuple[list[float | Tensor], dict[str, Tensor | None]]:
            args, kwargs = arguments.with_tensors(tensors)
            kept = {name: p.grad for name, p in params.items()}
            try:
                for p in params.values():
                    p.grad = None
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
                return flat_losses(loss), {name: p.grad for name, p in params.items()}
            finally:
                for name, p in params.items():
                    p.grad = kept[name]

        return function

    def _compile_beside(self, plan: Plan) -> None:
        """Begin to compile the plan's graph, unless another one is being compiled."""
        if not self.compile or plan.compiles:
            return
        graphs = [other.graph for other in self._plans.values() if other.graph is not None]
        if any(g.compilation is not None and not g.compilation.has_ended() for g in graphs):
            return
        assert plan.graph is not None
        plan.compiles = True
        plan.graph.compile()

    # --------------------------------------------------------------------------------- plain steps

    def _arguments(self, args: Args, kwargs: dict[str, object]) -> Arguments | None:
        """Return the arguments, if this step may be one by a graph."""
        if self.why_not is not None or handlers_are_active():
            return None
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            return None
        try:
            return Arguments(args, kwargs)
        except NotCaptured as error:
            self._give_up(str(error))
            return None

    def _plan(self, arguments: Arguments) -> Plan:
        plan = self._plans.get(arguments.key)
        if plan is None:
            if len(self._plans) >= _MOST_GRAPHS:
                self._give_up(
                    f"the arguments had {_MOST_GRAPHS} different shapes, or values of numbers; "
                    "pad tensors to a common shape, and give numbers that change as tensors"
                )
            plan = self._plans[arguments.key] = Plan()
        return plan

    def _give_up(self, reason: str) -> None:
        self.why_not = reason.partition("\n")[0]  # Pyro appends the shapes of a trace
        self._plans.clear()
        self._last = None
        warnings.warn(f"CompiledSVI runs as SVI does: {self.why_not}", stacklevel=4)


def _distinct(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each parameter once, though it may have several names."""
    names = {id(p): name for name, p in params.items()}
    return {name: p for name, p in params.items() if names[id(p)] == name}
