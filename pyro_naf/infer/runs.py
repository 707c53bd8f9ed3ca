"""A model run for one draw, with its latents given and its discrete latents enumerated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ..guides.flat_priors import start_flat_priors
from ..guides.pyro_internals import (
    enumerated,
    is_subsample,
    log_prob_sum,
    loops_over_numbers,
    plates_with,
    without_checks,
    without_start,
)
from ..guides.sites import Angles, Deltas, Latents, latent_sites, plate_nesting
from ..support.calls import Args, Kwargs, Model
from .lanes import REFUSALS

#: Largest number of runs of the model in search of one that the model does not refuse.
_TRIES = 50


class Runs:
    """A model with its arguments, and what a run of it needs.

    :param model: any model that Pyro's NUTS takes.
    :param args: the model's arguments, as are ``kwargs``.
    :ivar nesting: number of dimensions that plates use, where discrete latents are enumerated;
        else None.
    :ivar needs_gradients: whether the model cannot run without recording a graph.
    :ivar discrete: finite discrete latents, which are summed out.
    :ivar subsampled: subsampled plate to its size and an example of its indices.
    """

    def __init__(self, model: Model, args: Args, kwargs: Kwargs | None) -> None:
        self.model = Angles()(Deltas()(without_start(model)))
        self.args, self.kwargs = args, dict(kwargs or {})
        self.nesting: int | None = None
        self.needs_gradients = False
        self.discrete: list[str] = []
        self.subsampled: dict[str, tuple[int, Tensor]] = {}

    def run(self, latents: Latents, handler: Model | None = None) -> Trace:
        """Trace of one run of the model with these latents.

        :param handler: put around the model, inside the handler that sets the latents.
        """
        graph = torch.enable_grad() if self.needs_gradients else nullcontext()
        plates = self._plates(latents.elements)
        with graph, without_checks(), poutine.block(), plates, loops_over_numbers():
            model = self._with_enumeration()
            handled = latents(model if handler is None else handler(model))
            return poutine.trace(handled).get_trace(*self.args, **self.kwargs)

    def log_density(self, latents: Latents) -> Tensor:
        """Log-density of a run, and what the latents add to it."""
        return log_prob_sum(self.run(latents), self.nesting) + latents.log_det

    def in_full(self) -> AbstractContextManager[None]:
        """Inside, subsampled plates take all their elements."""
        return self._plates({})

    def _with_enumeration(self) -> Model:
        return self.model if self.nesting is None else enumerated(self.model, self.nesting)

    def _plates(self, elements: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Subsampled plates take the given elements inside; by default, all of them."""
        if not self.subsampled:
            return nullcontext()

        def indices(name: str, size: int) -> Tensor | None:
            if name not in self.subsampled:
                return None
            if name in elements:
                return elements[name]
            return torch.arange(size, device=self.subsampled[name][1].device)

        return plates_with(indices)

    def first(self, init_loc_fn: Callable[..., Tensor]) -> Trace:
        """Trace of a run at the start, with whole plates, and discrete sites enumerated.

        :raises ValueError: for discrete latents that are not finite, and for a subsampled plate
            that cannot be run with all its elements.
        """
        trace = self.attempt(init_loc_fn)
        for name, site in trace.nodes.items():
            fn = site.get("fn")
            if is_subsample(site) and fn.subsample_size is not None and fn.subsample_size < fn.size:
                self.subsampled[name] = (fn.size, site["value"])
        latents = latent_sites(trace)
        self.discrete = [n for n, site in latents.items() if site["fn"].support.is_discrete]
        if endless := [n for n in self.discrete if not latents[n]["fn"].has_enumerate_support]:
            raise ValueError(
                f"latents must be continuous or finite, but {endless} take infinitely many values; "
                "sum over them in the model, or put continuous ones in their place"
            )
        if self.discrete:
            self.nesting = plate_nesting(trace)
        if not self.discrete and not self.subsampled:
            return trace
        return self._first_in_full(init_loc_fn)

    def _first_in_full(self, init_loc_fn: Callable[..., Tensor]) -> Trace:
        """Trace of a run with all elements of the plates; its density must be computable."""
        try:
            trace = self.attempt(init_loc_fn)
            log_prob_sum(trace, self.nesting)  # Pyro says here what is wrong with an enumeration
            return trace
        except (*REFUSALS, IndexError) as error:
            if not self.subsampled:
                raise
            name, (size, some) = next(iter(self.subsampled.items()))
            count = len(some)
            raise ValueError(
                f"plate {name!r} is subsampled ({count} of {size}), and the model cannot be run "
                "with all of its elements; give the model the whole data and subsample it inside, "
                f"as in `with pyro.plate({name!r}, {size}, {count}) as i:` and y[i] ({error})"
            ) from error

    def attempt(self, init_loc_fn: Callable[..., Tensor]) -> Trace:
        """Run the model at the starting point, or at a draw of the prior that is not refused."""
        failure: Exception | None = None
        for i in range(_TRIES):
            init = InitMessenger(start_flat_priors(init_to_sample if i else init_loc_fn))
            graph = torch.enable_grad() if self.needs_gradients else torch.no_grad()
            try:
                with graph, poutine.block(), self._plates({}), _lenient(i):
                    handled = init(self._with_enumeration())
                    trace = poutine.trace(handled).get_trace(*self.args, **self.kwargs)
                    if self.nesting is None:
                        trace.compute_log_prob()  # Pyro names the site where shapes do not fit
                    return trace
            except REFUSALS as error:
                failure = failure or error
                # A model may differentiate something itself.
                self.needs_gradients = i % 2 == 0
        assert failure is not None
        raise failure


def _lenient(tries: int) -> AbstractContextManager[None]:
    """Without Pyro's validation, as NUTS runs a model, where many tries with it were in vain."""
    return pyro.validation_enabled(False) if tries >= _TRIES // 2 else nullcontext()
