"""One step of maximum likelihood, without a look at the device; recorded as a CUDA graph there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import parallel

if TYPE_CHECKING:
    from .training import Training

#: Passes on a side stream before a step is recorded: kernels are compiled and chosen there.
WARM_UP = 3


class Stepper:
    """Picks a batch, computes the gradient and lets Adam step, all on the device.

    What the host wants to know is summed on the device as well: :meth:`look` fetches it.

    :param module: gives the log-density of rows.
    :param weights: its parameters.
    :param rows: the data, on the device.
    :param batch: rows of a step, over all processes.
    :ivar skipped: steps without a finite loss and gradient, as of the last :meth:`look`.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: list[Tensor],
        rows: Sequence[Tensor],
        batch: int,
        options: Training,
    ) -> None:
        self.module, self.weights, self.rows, self.options = module, weights, rows, options
        self.parallel_module = parallel.wrapped(module)
        self.batch, self.device = batch, rows[0].device
        on_gpu = self.device.type == "cuda"
        self.adam = torch.optim.Adam(
            weights,
            lr=torch.tensor(options.lr, device=self.device),  # a recorded step follows a tensor
            fused=True,
            capturable=on_gpu,
        )
        # Sum of finite losses and their number, skipped steps, and those in a row until now.
        self.sums = torch.zeros(4, dtype=torch.double, device=self.device)
        self.fetched = self.taken = [0.0, 0.0]
        self.skipped = 0
        self.order: Tensor | None = None
        self.graph: Any = None
        self.wants_graph = options.graph if options.graph is not None else on_gpu
        self.wants_graph = self.wants_graph and on_gpu and parallel.size() == 1
        self.static = [t.new_empty(batch, *t.shape[1:]) for t in rows] if self.wants_graph else []

    @property
    def has_order(self) -> bool:
        """Whether :meth:`new_order` was called."""
        return self.order is not None

    def new_order(self, seed: int, epoch: int) -> None:
        """Shuffles the rows: the same order for the same seed and epoch."""
        generator = torch.Generator(self.device)
        generator.manual_seed((seed * 1_000_003 + epoch) % 2**63)
        self.order = torch.randperm(len(self.rows[0]), generator=generator, device=self.device)

    def step(self, i: int, lr: float) -> None:
        """The step with the i-th batch of the order."""
        assert self.order is not None
        chosen = parallel.part([self.order[i * self.batch : (i + 1) * self.batch]])[0]
        self.adam.param_groups[0]["lr"].fill_(lr)
        if not self.wants_graph:
            self._compute([t.index_select(0, chosen) for t in self.rows])
            return
        for buffer, t in zip(self.static, self.rows, strict=True):
            torch.index_select(t, 0, chosen, out=buffer)
        if self.graph is not None:
            self.graph.replay()
        elif not self._record():
            self._compute(self.static)

    def _record(self) -> bool:
        """Records the step and replays it; says whether that went well.

        The first time the step runs as usual, which compiles kernels and makes Adam's state.
        """
        if not self.adam.state:
            return False
        try:
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._gradient(self.static)
            torch.cuda.current_stream(self.device).wait_stream(side)
            for weight in self.weights:
                weight.grad = None  # the recorded ones live in the graph's own memory
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._compute(self.static)
            graph.replay()
            self.graph = graph
            return True
        except Exception as error:  # whatever the kernels and libraries of this step object to
            torch.cuda.synchronize(self.device)
            self.wants_graph = False
            first = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                f"a step cannot be recorded as a CUDA graph and runs as usual: "
                f"{type(error).__name__}: {first}",
                stacklevel=2,
            )
            return False

    def _gradient(self, rows: Sequence[Tensor]) -> Tensor:
        for weight in self.weights:
            weight.grad = None
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.options.precision == "bfloat16",
            cache_enabled=False,
        ):
            loss = -self.parallel_module(*rows).mean()
        loss.backward()
        return loss.detach()

    def _compute(self, rows: Sequence[Tensor]) -> None:
        loss = self._gradient(rows)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.options.clip)
        bad = parallel.any_of(~(torch.isfinite(norm) & torch.isfinite(loss)))
        # As torch's GradScaler does it: fused kernels look at this number and leave all as it is.
        self.adam.found_inf = bad.float()  # type: ignore[attr-defined]
        self.adam.step()
        good = ~bad
        self.sums[0] += torch.where(good, loss, 0).double()
        self.sums[1] += good
        self.sums[2] += bad
        self.sums[3] = (self.sums[3] + 1) * bad

    def look(self) -> int:
        """Waits for the device; returns how many steps in a row, up to now, were bad."""
        values = self.sums.tolist()
        self.skipped, self.fetched = int(values[2]), values[:2]
        return int(values[3])

    def take_mean(self) -> float | None:
        """Mean log-likelihood of the steps since the last time, as of the last :meth:`look`."""
        total, count = (a - b for a, b in zip(self.fetched, self.taken, strict=True))
        self.taken = self.fetched
        return -total / count if count else None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"adam": self.adam.state_dict(), "sums": self.sums, "taken": self.taken}

    def load_state(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.adam.load_state_dict(state["adam"])
        self.sums.copy_(state["sums"])
        self.taken = list(state["taken"])
