"""One step of maximum likelihood, without a look at the device; recorded as a CUDA graph there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..training import parallel
from ..training.steps import guarded_step

if TYPE_CHECKING:
    from .settings import Training

#: Steps run as usual before one is recorded: kernels are compiled and chosen there.
WARM_UP = 3


class Stepper:
    """Picks a batch, computes the gradient and lets Adam step, all on the device.

    What the host wants to know is summed on the device as well: :meth:`look` fetches it.

    :param module: gives the log-density of rows.
    :param weights: its parameters.
    :param rows: the data, on the device.
    :param batch: rows of a step, over all processes.
    :param weight: of the rows, ``(N,)``; 1 by default.
    :ivar skipped: steps without a finite loss and gradient, as of the last :meth:`look`.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: list[Tensor],
        rows: Sequence[Tensor],
        batch: int,
        options: Training,
        weight: Tensor | None = None,
    ) -> None:
        if weight is not None:  # the last of the rows' tensors, and 1 in the mean
            rows = [*rows, (weight / weight.mean()).unsqueeze(1).to(rows[0])]
        self.weighted = weight is not None
        self.weights, self.rows, self.options = weights, rows, options
        self.parallel_module = parallel.wrapped(module)
        self.batch, self.device = batch, rows[0].device
        on_gpu = self.device.type == "cuda"
        self.adam = torch.optim.AdamW(
            weights,
            weight_decay=options.weight_decay,
            lr=torch.tensor(options.lr, device=self.device),  # a recorded step follows a tensor
            fused=True,
            capturable=on_gpu,
        )
        # Sum of finite losses, their number, and skipped steps; then those in a row until now.
        self.sums = torch.zeros(3, dtype=torch.double, device=self.device)
        self.in_a_row = torch.zeros((), dtype=torch.double, device=self.device)
        self.fetched = self.taken = [0.0, 0.0]
        self.skipped = 0
        self.order: Tensor | None = None
        wanted = options.graph if options.graph is not None else True
        self.recorder = (
            _Recorder(self.device) if wanted and on_gpu and parallel.size() == 1 else None
        )
        self.static = [t.new_empty(batch, *t.shape[1:]) for t in rows] if self.recorder else []

    @property
    def has_order(self) -> bool:
        """Whether :meth:`new_order` was called."""
        return self.order is not None

    def new_order(self, seed: int, epoch: int) -> None:
        """Shuffle the rows: the same order for the same seed and epoch."""
        generator = torch.Generator(self.device)
        generator.manual_seed((seed * 1_000_003 + epoch) % 2**63)
        self.order = torch.randperm(len(self.rows[0]), generator=generator, device=self.device)

    def step(self, i: int, lr: float) -> None:
        """Make the step with the i-th batch of the order."""
        assert self.order is not None
        chosen = parallel.part([self.order[i * self.batch : (i + 1) * self.batch]])[0]
        self.adam.param_groups[0]["lr"].fill_(lr)
        if self.recorder is None:
            self._compute([t.index_select(0, chosen) for t in self.rows])
            return
        for buffer, t in zip(self.static, self.rows, strict=True):
            torch.index_select(t, 0, chosen, out=buffer)
        if not self.recorder.run(lambda: self._compute(self.static), self._forget_gradients):
            self.recorder = None
            self._compute(self.static)

    def _forget_gradients(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def _gradient(self, rows: Sequence[Tensor]) -> Tensor:
        self._forget_gradients()
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.options.precision == "bfloat16",
            cache_enabled=False,
        ):
            if self.weighted:
                *rows, weight = rows
                loss = -(weight.squeeze(1) * self.parallel_module(*rows)).mean()
            else:
                loss = -self.parallel_module(*rows).mean()
        loss.backward()
        return loss.detach()

    def _compute(self, rows: Sequence[Tensor]) -> None:
        loss = self._gradient(rows)
        clip = self.options.clip
        bad = guarded_step(self.adam, self.weights, loss, clip, agreed=parallel.any_of)
        finite = torch.where(bad, 0, loss).double()
        self.sums += torch.stack([finite, (~bad).double(), bad.double()])
        self.in_a_row.add_(1).mul_(bad)

    def look(self) -> int:
        """Wait for the device; return how many steps in a row, up to now, were bad."""
        *self.fetched, skipped, in_a_row = torch.cat([self.sums, self.in_a_row.view(1)]).tolist()
        self.skipped = int(skipped)
        return int(in_a_row)

    def take_mean(self) -> float | None:
        """Mean log-likelihood of the steps since the last time, as of the last :meth:`look`."""
        total, count = (a - b for a, b in zip(self.fetched, self.taken, strict=True))
        self.taken = self.fetched
        return -total / count if count else None

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {
            "adam": self.adam.state_dict(),
            "sums": self.sums,
            "in_a_row": self.in_a_row,
            "taken": self.taken,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        rate = self.adam.param_groups[0]["lr"]  # on the device, and set anew before each step
        self.adam.load_state_dict(state["adam"])
        self.adam.param_groups[0]["lr"] = rate
        self.sums.copy_(state["sums"])
        self.in_a_row.copy_(state["in_a_row"])
        self.taken = list(state["taken"])


class _Recorder:
    """A step that is run a few times, recorded as a CUDA graph, and replayed from then on.

    A step of a flow is hundreds of small kernels, which a GPU runs faster than Python starts them.
    All happens on one stream of its own: autograd remembers the stream on which it first met a
    weight, and the default one cannot be recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.runs = 0

    def run(self, step: Callable[[], None], before: Callable[[], None]) -> bool:
        """Run one step; return whether that was possible. False: it can never be recorded.

        :param before: called before recording, which must start without the step's old tensors.
        """
        if self.graph is not None:
            self.graph.replay()
            return True
        self.runs += 1
        current = torch.cuda.current_stream(self.device)
        if self.runs <= WARM_UP:
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                step()
            current.wait_stream(self.stream)
            return True
        try:
            before()
            graph = torch.cuda.CUDAGraph()
            # Other threads, and libraries that load their kernels, may do as they like meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                step()
        except Exception as error:  # whatever the libraries of this step object to
            torch.cuda.synchronize(self.device)
            first = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                f"a step cannot be recorded as a CUDA graph and runs as usual: "
                f"{type(error).__name__}: {first}",
                stacklevel=2,
            )
            return False
        self.graph = graph
        graph.replay()
        return True
