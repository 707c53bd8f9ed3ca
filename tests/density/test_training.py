"""The loop: what it maximises, when it stops, what it skips, and that it goes on after a kill."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_naf.density.architectures import build
from pyro_naf.density.flow import evaluating
from pyro_naf.density.settings import Training
from pyro_naf.density.training import mean_log_prob, train


class Gaussian(nn.Module):
    """One mean, whose maximum-likelihood estimate is known."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return -0.5 * (x - self.loc).square().sum(-1) - 0.5 * math.log(2 * math.pi)


def fit(module: nn.Module, x: Tensor, validation: Tensor | None = None, **options: Any) -> Any:
    training = Training(**{"progress": False, "batch_size": 32, "lr": 0.05, **options})
    return train(module, (x,), None if validation is None else (validation,), training)


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_the_maximum_likelihood_estimate_is_found(schedule: str) -> None:
    x, module = 3 + torch.randn(640, 1), Gaussian()
    history = fit(module, x, x, schedule=schedule, max_steps=600, polyak=0.99)
    assert module.loc.item() == pytest.approx(float(x.mean()), abs=0.03)
    assert history.steps == 600 and history.stopped == "budget" and history.skipped == 0
    last = history.evaluations[-1]
    assert last["validation"] == pytest.approx(mean_log_prob(module, (x,))[0], abs=1e-3)
    assert last["train"] == pytest.approx(last["validation"], abs=0.05)


def test_the_weights_that_validate_best_are_kept_and_patience_ends_the_run() -> None:
    x, module = 3 + torch.randn(640, 1), Gaussian()
    validation = 1 + torch.randn(640, 1)  # on the way to 3 the mean passes its optimum
    history = fit(module, x, validation, max_steps=100_000, evaluate_every=5, patience=4, polyak=0)
    assert history.stopped == "patience" and history.steps < 300
    assert module.loc.item() == pytest.approx(float(validation.mean()), abs=0.2)
    values = {e["step"]: e["validation"] for e in history.evaluations}
    assert values[history.best_step] == max(values.values())


def test_time_ends_the_run() -> None:
    start = time.monotonic()
    history = fit(Gaussian(), torch.randn(64, 1), max_seconds=0.3)
    assert history.seconds >= 0.3 and time.monotonic() - start < 30
    assert history.evaluations[-1]["lr"] == pytest.approx(0, abs=1e-3)


def test_without_a_limit_the_budget_is_2000_steps_at_least() -> None:
    assert fit(Gaussian(), torch.randn(64, 1)).steps == 2000


def test_polyak_averages_the_weights() -> None:
    # At a rate that keeps the weights shaking the average is the better estimate.
    x, errors = torch.randn(320, 1), []
    for polyak in (0.0, 0.99):
        module = Gaussian()
        fit(module, x, max_steps=400, lr=0.3, schedule="constant", polyak=polyak, batch_size=2)
        errors.append(abs(module.loc.item() - float(x.mean())))
    assert errors[1] < errors[0] / 2


class Troubled(Gaussian):
    """NaN at rows above a threshold."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.where(x > 100, math.nan, x))


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    x, module = torch.randn(320, 1), Troubled()
    x[7] = 1e3
    history = fit(module, x, max_epochs=10)
    assert history.skipped == 10 and history.steps == 100  # once an epoch
    assert torch.isfinite(module.loc).all()
    assert math.isfinite(history.evaluations[-1]["train"])


def test_skipped_steps_change_no_weight_and_are_no_training() -> None:
    x, module = torch.full((32, 1), 1e3), Troubled()
    before = module.loc.item()
    with pytest.raises(RuntimeError, match=r"none of 20 steps had a finite loss.*smaller lr"):
        fit(module, x, max_steps=20)
    assert module.loc.item() == before


def test_when_no_step_is_finite_it_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"50 steps in a row.*up to step 50.*smaller lr"):
        fit(Troubled(), torch.full((32, 1), 1e3), max_steps=1000)


def test_infinite_validation_rows_are_never_best() -> None:
    seen, x = [], torch.randn(64, 1)
    training = Training(progress=False, max_steps=200, patience=1)
    with pytest.raises(RuntimeError, match="no evaluation had a finite validation likelihood"):
        train(Troubled(), (x,), (torch.full((4, 1), 1e3),), training, seen.append)
    assert seen[0]["validation"] == -math.inf


@pytest.mark.parametrize("validation", [None, torch.randn(50, 2)])
def test_weights_that_a_step_threw_off_are_not_returned_as_trained(validation: Any) -> None:
    flow = build("maf-dsf-1", 2, hidden_dims=[8], hidden_units=4)
    with pytest.raises(RuntimeError, match=r"no (likelihood|evaluation).*finite.*smaller lr"):
        fit(flow, torch.randn(64, 2), validation, max_steps=20, lr=1e30)


def test_an_interrupted_run_leaves_the_best_weights_and_no_gradients() -> None:
    x, module, kept = 3 + torch.randn(640, 1), Gaussian(), []

    def interrupt(row: dict[str, Any]) -> None:
        kept.append(row)
        if len(kept) == 2:
            raise KeyboardInterrupt

    training = Training(progress=False, max_steps=1000, evaluate_every=50, lr=0.01)
    with pytest.raises(KeyboardInterrupt):
        train(module, (x,), (x,), training, interrupt)
    assert mean_log_prob(module, (x,))[0] == pytest.approx(kept[1]["validation"], abs=1e-6)
    assert module.loc.grad is None and not module.training


def test_bfloat16_reaches_nearly_the_same_likelihood() -> None:
    x = torch.randn(2000, 2).exp().log1p()
    values = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        flow = build("maf-dsf-1", 2, hidden_dims=[16])
        fit(flow, x, max_steps=150, lr=5e-3, precision=precision)
        values.append(mean_log_prob(flow, (x,))[0])
    assert values[1] == pytest.approx(values[0], abs=0.05)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["maf-ddsf-2", "maf-dsf-2", "nsf-ar-2", "made-mog", "tan"])
def test_a_gpu_reaches_the_likelihood_of_the_cpu(
    name: str, precision: str, device: torch.device
) -> None:
    """With recorded steps: a warning that they cannot be recorded would be an error."""
    if device.type != "cuda":
        pytest.skip("set PYRO_NAF_DEVICE=cuda to run this test")
    x, values = torch.randn(2000, 2).exp().log1p(), []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        flow = build(name, 2, hidden_dims=[16], hidden_units=8).to(place)
        fit(flow, x.to(place), max_steps=400, lr=5e-3, precision=precision)
        values.append(mean_log_prob(flow, (x.to(place),))[0])
    assert values[1] == pytest.approx(values[0], abs=0.05)


def test_matmul_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    fit(Gaussian(), torch.randn(64, 1), max_steps=2, precision="tf32")
    assert torch.get_float32_matmul_precision() == before


# ------------------------------------------------------------------------------------- checkpoints


def interrupted(module: nn.Module, x: Tensor, path: Path, after: int, **options: Any) -> None:
    """A run that dies after so many evaluations, as a killed one does."""

    class Killed(BaseException):
        pass

    def kill(row: dict[str, Any]) -> None:
        nonlocal after
        after -= 1
        if after < 0:
            raise Killed

    training = Training(checkpoint=path, checkpoint_seconds=0, progress=False, **options)
    with pytest.raises(Killed):
        train(module, (x,), (x[:50],), training, kill)


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_is_bit_identical(tmp_path: Path, schedule: str, after: int) -> None:
    x = torch.randn(500, 2).exp()
    start = build("maf-dsf-1", 2, hidden_dims=[8], hidden_units=4, dropout=0.3)
    options: dict[str, Any] = {
        "max_steps": 70, "evaluate_every": 15, "batch_size": 64, "schedule": schedule,
        "patience": 3, "lr": 0.05,
    }  # fmt: skip
    whole = copy.deepcopy(start)
    expected = train(whole, (x,), (x[:50],), Training(progress=False, **options))
    path = tmp_path / "checkpoint.pt"
    interrupted(copy.deepcopy(start), x, path, after, **options)
    torch.manual_seed(99)  # nothing that the dead process left may matter
    again = build("maf-dsf-1", 2, hidden_dims=[8], hidden_units=4, dropout=0.3)
    training = Training(progress=False, checkpoint=path, resume=True, **options)
    history = train(again, (x,), (x[:50],), training)
    for mine, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    drop = ("seconds",)
    assert [{k: v for k, v in e.items() if k not in drop} for e in history.evaluations] == [
        {k: v for k, v in e.items() if k not in drop} for e in expected.evaluations
    ]


NAMES = [
    "made", "made-mog", "maf-affine-2", "maf-mog-1", "maf-dsf-1", "maf-ddsf-1", "maf-nsf-1",
    "iaf-affine-1", "iaf-dsf-1", "tan", "bnaf-1",
]  # fmt: skip


@pytest.mark.parametrize("linear", ["reversal", "lu"])
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_resumes_with_what_its_constructor_drew(
    tmp_path: Path, name: str, linear: str
) -> None:
    x = torch.randn(200, 4).exp()
    few = {"hidden_dims": [4], "hidden_units": 2, "bins": 3, "components": 2}
    options: dict[str, Any] = {"max_steps": 6, "evaluate_every": 2, "batch_size": 32, "seed": 3}

    def flow() -> nn.Module:
        return build(name, 4, linear=linear, dropout=0.3, **few)

    start = flow()
    path = tmp_path / "checkpoint.pt"
    interrupted(copy.deepcopy(start), x, path, 1, **options)
    train(start, (x,), (x[:50],), Training(progress=False, **options))
    again = flow()  # other permutations, as in another process
    train(again, (x,), (x[:50],), Training(progress=False, checkpoint=path, resume=True, **options))
    for (key, mine), theirs in zip(
        start.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), key
    assert not any(module.training for module in again.modules())


def test_evaluation_puts_the_mode_of_every_submodule_back() -> None:
    flow = build("maf-affine-2", 2, hidden_dims=[8], dropout=0.5)
    modules = list(flow.modules())
    for i, module in enumerate(modules):
        module.training = i % 3 == 0
    before = [module.training for module in modules]
    one, two = (mean_log_prob(flow, (torch.ones(50, 2),))[0] for _ in range(2))
    assert one == two and [module.training for module in modules] == before
    with pytest.raises(RuntimeError), evaluating(flow):
        raise RuntimeError
    assert [module.training for module in modules] == before


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    x = torch.randn(64, 1)
    history = fit(Gaussian(), x, max_steps=5, checkpoint=tmp_path / "none.pt", resume=True)
    assert history.steps == 5


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    x, path = torch.randn(64, 1), tmp_path / "c.pt"
    fit(Gaussian(), x, max_steps=5, checkpoint=path, checkpoint_seconds=0)
    with pytest.raises(ValueError, match=r"c.pt is of another run: it differs in rows"):
        fit(Gaussian(), x + 1, max_steps=5, checkpoint=path, resume=True)
    for other in ({"patience": 3}, {"precision": "tf32"}, {"evaluate_every": 2}):
        options = {"max_steps": 5, **other}
        with pytest.raises(ValueError, match=f"it differs in {next(iter(other))}$"):
            fit(Gaussian(), x, checkpoint=path, resume=True, **options)
    with pytest.raises(ValueError, match=r"it differs in validation rows$"):
        fit(Gaussian(), x, x[:9], max_steps=5, checkpoint=path, resume=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"c.pt is not a checkpoint of pyro_naf"):
        fit(Gaussian(), x, max_steps=5, checkpoint=path, resume=True)
