"""FlowDensity: calibrated in the units of the data, whatever those are; files; bad input."""

from __future__ import annotations

import copy
import enum
import math
import re
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_naf.density import FlowDensity, ModelFileError
from pyro_naf.density.datasets import reference

QUICK: dict[str, Any] = {"seed": 0, "progress": False}


def small(dim: int = 2, context_dim: int = 0, name: str = "maf-dsf-2", **kw: Any) -> FlowDensity:
    return FlowDensity(dim, context_dim, name, **{"hidden_dims": [16], "hidden_units": 8, **kw})


def bananas(n: int) -> torch.Tensor:
    """y = x^2 + noise, in awkward units."""
    x = torch.randn(n, dtype=torch.double)
    y = x.square() + 0.5 * torch.randn(n, dtype=torch.double)
    return torch.stack([2020 + 1e-3 * x, 1e6 * y], 1)


def log_prob_of_bananas(rows: torch.Tensor) -> torch.Tensor:
    x = (rows[:, 0] - 2020) / 1e-3
    y = rows[:, 1] / 1e6
    log_prob = -0.5 * x.square() - 2 * (y - x.square()).square() - math.log(2 * math.pi * 0.5)
    return log_prob - math.log(1e-3) - math.log(1e6)


@pytest.fixture(scope="module")
def fitted() -> FlowDensity:
    torch.manual_seed(0)
    density = small(hidden_dims=[32])
    return density.fit(bananas(4000), max_steps=1200, batch_size=128, lr=5e-3, **QUICK)


def test_likelihood_is_in_the_units_of_the_data_and_close_to_the_truth(fitted: FlowDensity) -> None:
    test = bananas(4000)
    truth = float(log_prob_of_bananas(test).mean())
    assert truth - 0.06 < fitted.score(test) < truth + 0.02
    assert fitted.history is not None
    assert fitted.history.evaluations[-1]["validation"] == pytest.approx(truth, abs=0.3)


def test_draws_are_in_the_units_of_the_data(fitted: FlowDensity) -> None:
    x, true = fitted.sample(4000), bananas(4000)
    assert x.dtype == torch.double
    se = (x.var(0) + true.var(0)).sqrt() / 4000**0.5
    assert ((x.mean(0) - true.mean(0)).abs() < 5 * se).all()
    torch.testing.assert_close(x.std(0), true.std(0), rtol=0.1, atol=0)


def energy_test(x: torch.Tensor, y: torch.Tensor, permutations: int = 200) -> float:
    """The p-value of the energy distance between two samples, each ``(n, D)``."""
    both = torch.cat([x, y])
    both = (both - both.mean(0)) / both.std(0)
    distances = torch.cdist(both, both)
    sign = torch.cat([torch.ones(len(x)), -torch.ones(len(y))]).double()
    signs = torch.stack([sign, *(sign[torch.randperm(len(sign))] for _ in range(permutations))])
    statistics = -((signs @ distances) * signs).sum(1)
    return float((statistics >= statistics[0]).double().mean())


def rejected_of_20(draw: Any, held_out: Any, rows: int) -> int:
    """How many of 20 tests at 10 % tell draws from held-out rows: 6 of those alike, once in 90."""
    return sum(energy_test(draw(rows), held_out(rows)) < 0.1 for _ in range(20))


def gaussian_like(x: torch.Tensor) -> Any:
    moments = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
    return lambda n: moments.sample([n])


def test_draws_pass_a_two_sample_test_as_often_as_fresh_data(fitted: FlowDensity) -> None:
    assert rejected_of_20(bananas, bananas, 500) < 6
    assert rejected_of_20(fitted.sample, bananas, 500) < 6
    assert rejected_of_20(gaussian_like(bananas(4000)), bananas, 500) > 18  # it sees what is wrong


def test_draws_pass_a_two_sample_test_on_real_data(data_dir: Path) -> None:
    split = reference.protein(data_dir)
    train, test = (torch.from_numpy(rows) for rows in (split.train, split.test.astype(np.double)))
    torch.manual_seed(0)
    density = FlowDensity(10, architecture="maf-dsf-2", hidden_dims=[64])
    density.fit(train, max_steps=600, lr=5e-3, **QUICK)
    halves = test[torch.randperm(len(test))].tensor_split(2)
    held_out, fresh = (lambda n, h=h: h[torch.randperm(len(h))[:n]] for h in halves)
    assert rejected_of_20(fresh, held_out, 400) < 6
    assert rejected_of_20(lambda n: density.sample(n).double(), held_out, 400) < 6
    assert rejected_of_20(gaussian_like(train.double()), held_out, 400) > 18


def test_arrays_give_arrays_and_tensors_of_any_dtype_tensors(fitted: FlowDensity) -> None:
    x = bananas(5)
    expected = fitted.log_prob(x)
    assert expected.dtype == torch.double and expected.requires_grad
    as_array = fitted.log_prob(x.numpy())
    assert isinstance(as_array, np.ndarray) and as_array.dtype == np.float64
    np.testing.assert_allclose(as_array, expected.detach().numpy(), rtol=1e-5)
    assert fitted.score(x.tolist()) == pytest.approx(expected.mean().item(), rel=1e-6)
    density = small()
    rows = torch.randn(5, 2)
    for dtype in (torch.half, torch.bfloat16, torch.float, torch.double):
        found = density.log_prob(rows.to(dtype))
        torch.testing.assert_close(
            found, density.log_prob(rows), rtol=0.1, atol=0.1, check_dtype=False
        )
    assert density.log_prob(np.zeros((3, 2), np.int16)).shape == (3,)
    frozen = rows.numpy().astype(">f8")  # of another machine, and not to be written to
    frozen.flags.writeable = False
    np.testing.assert_allclose(density.log_prob(frozen), density.log_prob(rows.numpy()), atol=1e-5)
    assert density.log_prob(torch.zeros(4, 3, 2)).shape == (4, 3)
    assert density.log_prob(torch.zeros(2)).shape == ()


def test_log_prob_has_the_gradient_of_the_data_units(fitted: FlowDensity) -> None:
    x = bananas(3).requires_grad_()
    (found,) = torch.autograd.grad(fitted.log_prob(x).sum(), x)
    with torch.no_grad():
        step = torch.tensor([1e-5, 1e4], dtype=torch.double)
        for t in range(2):
            shift = step * torch.nn.functional.one_hot(torch.tensor(t), 2)
            slope = (fitted.log_prob(x + shift) - fitted.log_prob(x - shift)) / (2 * step[t])
            torch.testing.assert_close(found[:, t], slope, rtol=0.02, atol=0.02 / float(step[t]))


def test_distribution_agrees_with_log_prob_and_has_rsample() -> None:
    density = small().double()
    density.loc.copy_(torch.tensor([1.0, -2.0]))
    density.scale.copy_(torch.tensor([0.5, 3.0]))
    d = density.distribution()
    assert d.has_rsample
    x = d.rsample([100])
    assert x.requires_grad
    torch.testing.assert_close(d.log_prob(x.detach()), density.log_prob(x.detach()))
    torch.testing.assert_close(d.log_prob(x), density.log_prob(x))


def test_moments_stay_exact_when_the_module_changes_its_dtype() -> None:
    density = small()
    density.loc.fill_(1e9 + 1)
    density = density.to(torch.float32).half().float()
    assert density.loc.dtype == torch.double and density.loc[0] == 1e9 + 1
    assert next(density.flow.parameters()).dtype == torch.float32


def test_the_same_seed_gives_the_same_fit_and_another_another() -> None:
    start, rows = small(), torch.randn(300, 2)
    scores = []
    for seed in (3, 3, 4):
        density = copy.deepcopy(start).fit(rows, seed=seed, max_epochs=3, progress=False)
        scores.append(density.score(rows))
    assert scores[0] == scores[1] != scores[2]


def test_fitting_leaves_torchs_generators_alone() -> None:
    density, rows = small(), torch.randn(300, 2)
    before = torch.get_rng_state()
    density.fit(rows, max_epochs=1, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_rows_can_be_given() -> None:
    rows, held_out = torch.randn(300, 2), 5 + torch.randn(100, 2)
    density = small().fit(rows, validation=held_out, max_epochs=2, **QUICK)
    assert density.history is not None
    found = density.history.evaluations[-1]["validation"]
    assert found == pytest.approx(density.score(held_out), rel=1e-4)
    density = small().fit(rows, validation=0, max_epochs=2, **QUICK)
    assert density.history is not None
    assert density.history.evaluations[-1]["validation"] is None
    torch.testing.assert_close(density.loc, rows.double().mean(0))


def test_a_context_is_standardised_and_followed() -> None:
    context = 1e4 + 100 * torch.randn(3000, 1)
    x = (context - 1e4) / 100 + 0.1 * torch.randn(3000, 1)
    density = small(1, 1).fit(x, context, max_epochs=20, batch_size=128, lr=5e-3, **QUICK)
    truth = -math.log(0.1) - 0.5 - 0.5 * math.log(2 * math.pi)
    assert density.score(x, context) == pytest.approx(truth, abs=0.08)
    drawn = density.sample(500, torch.tensor([[1e4 - 100.0], [1e4 + 50.0]]))
    assert drawn.shape == (500, 2, 1)
    torch.testing.assert_close(drawn.mean(0)[:, 0], torch.tensor([-1.0, 0.5]), rtol=0, atol=0.05)
    array = density.log_prob(np.zeros((4, 1, 1)), np.array([[9900.0], [10050.0]]))
    assert array.shape == (4, 2)


def test_a_conditional_density_of_two_hidden_layers_integrates_to_one() -> None:
    density = small(2, 3, "maf-ddsf-2", hidden_dims=[16, 16], sharpness=2.0).double()
    with torch.no_grad():
        for p in density.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
        side = torch.linspace(-9, 9, 301, dtype=torch.double)
        grid = torch.cartesian_prod(side, side)
        for context in torch.randn(2, 3, dtype=torch.double):
            total = density.log_prob(grid, context).exp().sum() * (side[1] - side[0]) ** 2
            assert float(total) == pytest.approx(1, abs=1e-4)


def test_one_dimension_works() -> None:
    x = torch.randn(500, 1).exp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density = small(1).fit(x, max_epochs=3, **QUICK)
    assert density.sample(7).shape == (7, 1)


@pytest.mark.parametrize("name", ["maf-dsf-1", "maf-mog-1", "nsf-ar-1", "iaf-affine-1", "tan"])
def test_the_density_is_nothing_at_infinity_and_nan_at_nan(name: str) -> None:
    density = small(3, name=name)
    x = torch.zeros(7, 3, dtype=torch.double)
    x[:, 1] = torch.tensor([0, math.inf, -math.inf, math.nan, 1e300, 0, math.nan])
    x[5], x[6, 2] = math.inf, math.inf
    for found in (density.log_prob(x), torch.from_numpy(density.log_prob(x.numpy()))):
        assert found[0].isfinite() and (found[[1, 2, 4, 5]] == -math.inf).all()
        assert found[[3, 6]].isnan().all()
    given = x[:2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(density.log_prob(given)[0], given)
    assert slope.isfinite().all()


def test_rows_that_carry_a_graph_are_fitted_wherever_gradients_are_off() -> None:
    theta = torch.randn(100, 2, requires_grad=True)
    rows = 2 * theta + 1
    with torch.inference_mode():
        inferred = torch.randn(100, 2)
    for x, context in ((rows, None), (inferred, None), (rows.detach(), rows), (rows, inferred)):
        width = 0 if context is None else 2
        small(2, width).fit(x, context, validation=0.2, max_steps=2, **QUICK)
    small().fit(rows, validation=rows[:9], max_steps=2, **QUICK)
    with torch.no_grad():
        fitted = small().fit(rows, max_steps=2, **QUICK)
    assert fitted.score(rows) == fitted.score(rows.detach())
    (slope,) = torch.autograd.grad(fitted.log_prob(rows).sum(), theta)
    assert slope.isfinite().all()


def test_every_call_but_forward_is_in_evaluation_mode_and_puts_the_modes_back() -> None:
    density = small(name="maf-affine-2", dropout=0.5)
    rows = torch.randn(200, 2)
    density.fit(rows, max_steps=3, **QUICK)
    assert not any(module.training for module in density.modules())
    expected = density.log_prob(rows).detach()
    modules = list(density.modules())
    for i, module in enumerate(modules):
        module.training = i % 2 == 0
    before = [module.training for module in modules]
    assert torch.equal(density.log_prob(rows), expected)
    assert density.score(rows) == pytest.approx(float(expected.double().mean()))
    np.testing.assert_array_equal(density.score_samples(rows), density.log_prob(rows.numpy()))
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(density.sample(50))
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="x must have shape"):
        density.log_prob(rows[:, :1])
    assert [module.training for module in modules] == before
    density.train()
    assert not torch.equal(density(rows), expected)  # what a training loop of one's own calls

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        density.fit(rows, max_steps=3, on_evaluation=interrupt, **QUICK)
    assert not any(module.training for module in modules)


def test_draws_of_no_rows_and_of_many() -> None:
    density = small()
    assert density.sample(0).shape == (0, 2)
    assert density.sample(10_000).shape == (10_000, 2)
    with pytest.raises(ValueError, match="n must be an integer of at least 0, got -1"):
        density.sample(-1)


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["maf-ddsf-2", "tan", "bnaf-2", "maf-mog-2", "gaussian", "gmm-9"])
def test_a_model_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    density = small(3, name=name, linear="lu")
    density.columns = ["a", "b", "c"]
    density.loc.fill_(3.0)
    density.save(tmp_path / "new" / "model.pt")
    again = FlowDensity.load(tmp_path / "new" / "model.pt")
    x = torch.randn(5, 3)
    assert torch.equal(again.log_prob(x), density.eval().log_prob(x))
    assert again.columns == ["a", "b", "c"] and not again.training


class Widths(enum.IntEnum):
    WIDE = 8


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_units": np.int64(8)},
        {"hidden_dims": np.array([8, 8])},
        {"hidden_dims": (torch.tensor(8), np.int32(8), Widths.WIDE)},
        {"hidden_units": Widths.WIDE, "affine": np.bool_(True)},
        {"dropout": np.linspace(0, 0.2, 3)[1], "sharpness": Fraction(7, 2)},
        {"sharpness": np.longdouble(2), "linear": np.str_("lu")},
        {"input_dim": np.int64(2), "architecture": np.str_("maf-dsf-1")},
        {"context_dim": np.uint8(0), "residual": torch.tensor(True)},
    ],
)  # fmt: skip
def test_what_is_saved_loads_whatever_kind_of_numbers_its_options_are(
    options: dict[str, Any], tmp_path: Path
) -> None:
    made = {"input_dim": 2, "architecture": "maf-dsf-1", "hidden_dims": [8], **options}
    density = FlowDensity(**made)
    density.columns = np.array(["a", "b"])  # type: ignore[assignment]
    density.noise = {np.int64(1): np.float32(0.5)}
    density.save(tmp_path / "model.pt")
    again = FlowDensity.load(tmp_path / "model.pt")
    x = torch.randn(5, 2)
    assert torch.equal(again.log_prob(x), density.log_prob(x))
    assert again.columns == ["a", "b"] and again.noise == {1: 0.5}
    kinds = {type(v) for v in again.get_params().values()}
    assert kinds <= {int, float, str, bool, list, tuple, type(None)}


def test_what_could_not_be_loaded_is_refused_at_once_by_name(tmp_path: Path) -> None:
    for options in ({"activation": torch.nn.ReLU()}, {"hidden_units": object()}, {"bins": 1j}):
        (name,) = options
        with pytest.raises(TypeError, match=f"^{name} must be made of numbers and strings, got "):
            small(**options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^lr must be made of numbers"):
            small().fit(ROWS, lr=1j, **QUICK)
    density = small()
    density.columns = [object(), "b"]  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^columns must be made of numbers and strings, got"):
        density.save(tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_run_with_options_of_any_kind_of_numbers_goes_on(tmp_path: Path) -> None:
    kept: dict[str, Any] = {
        "lr": np.float64(3e-3), "clip": torch.tensor(5.0), "patience": np.int64(9),
        "batch_size": Widths.WIDE, "schedule": np.str_("plateau"), "seed": np.int64(2**40),
        "checkpoint": tmp_path / "c.pt", "checkpoint_seconds": 0, "progress": np.bool_(False),
        "max_steps": np.uint8(4), "evaluate_every": 2,
    }  # fmt: skip
    small().fit(ROWS, **kept)
    assert small().fit(ROWS, resume=True, **kept).history.steps == 4  # type: ignore[union-attr]


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is a folder, not a file"):
        small().fit(ROWS, checkpoint=tmp_path, max_steps=1, **QUICK)
    with pytest.raises(OSError, match="/dev/null is a device, not a file"):
        small().save("/dev/null")


def test_history_and_dtypes_come_back(fitted: FlowDensity, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model.pt")
    again = FlowDensity.load(tmp_path / "model.pt")
    assert again.history == fitted.history and again.data_dtype == torch.double
    small().double().save(tmp_path / "model.pt")
    loaded = FlowDensity.load(tmp_path / "model.pt")
    assert next(loaded.flow.parameters()).dtype == torch.double


def files_of_others(folder: Path) -> dict[str, tuple[bytes, str]]:
    small().save(folder / "model.pt")
    whole = (folder / "model.pt").read_bytes()
    content = torch.load(folder / "model.pt", weights_only=True)

    def variant(**changes: Any) -> bytes:
        torch.save({**content, **changes}, folder / "variant.pt")
        return (folder / "variant.pt").read_bytes()

    torch.save(small(), folder / "module.pt")
    torch.save({"weights": torch.zeros(3)}, folder / "weights.pt")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    return {
        "empty": (b"", "is truncated, or not such a file"),
        "truncated": (whole[: len(whole) // 2], "is truncated, or not such a file"),
        "flipped": (bytes(flipped), "is truncated, or not such a file"),
        "text": (b"a,b\n1,2\n", "is truncated, or not such a file"),
        "module": ((folder / "module.pt").read_bytes(), "holds more than tensors and numbers"),
        "weights": ((folder / "weights.pt").read_bytes(), "is not a model of pyro_naf"),
        "version": (variant(version=99), "is a model of version 99, this pyro_naf reads version"),
        "architecture": (variant(architecture="vae"), "does not hold a whole model: architecture"),
        "dim": (variant(input_dim=3), "does not hold a whole model"),
        "state": (variant(state={}), "does not hold a whole model"),
    }


def test_a_foreign_or_truncated_file_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, (data, message) in files_of_others(tmp_path).items():
        path = tmp_path / f"{name}.bad"
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=re.escape(message)) as raised:
            FlowDensity.load(path)
        assert name in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError):
        FlowDensity.load(tmp_path / "none.pt")


def test_a_checkpoint_is_a_path_or_its_name_and_of_one_architecture(tmp_path: Path) -> None:
    path = str(tmp_path / "c.pt")
    kept = {"checkpoint": path, "checkpoint_seconds": 0, "validation": np.float32(0.2)}
    small().fit(ROWS, max_steps=3, **kept, **QUICK)
    small().fit(ROWS, max_steps=3, resume=True, **kept, **QUICK)
    with pytest.raises(ValueError, match=r"it differs in overrides$"):
        small(activation="elu").fit(ROWS, max_steps=3, resume=True, **kept, **QUICK)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model.pt"
    density = small()
    density.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        density.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


# -------------------------------------------------------------------------------------- bad input


ROWS = np.random.default_rng(0).normal(size=(50, 2))


def with_value(value: float, *rows: int) -> np.ndarray:
    bad = ROWS.copy()
    bad[list(rows), 1] = value
    return bad


@pytest.mark.parametrize(
    "x, message",
    [
        (ROWS[:, :1], "x must have shape (N, 2), got (50, 1)"),
        (ROWS[0], "x must have shape (N, 2), got (2,)"),
        (ROWS[:0], "x must have rows, got none"),
        (ROWS[:1], "2 rows to train on, got 1 row, of which 1 held out for validation"),
        (with_value(np.nan, 3), "x holds 1 NaN and 0 infinite values, in row 3"),
        (
            with_value(-np.inf, *range(10, 17)),
            "x holds 0 NaN and 7 infinite values, in rows 10, 11, 12, 13, 14 and 2 more",
        ),
        (ROWS * [1, 0], "x is constant in column 1, and has no density there"),
        (ROWS * [1e200, 1], "x varies too widely to be standardised in column 0: choose another"),
        (ROWS * [1, 1e-200], "x varies too little to be standardised in column 1: choose another"),
        (ROWS * 0 + 3e7, "x is constant in columns 0, 1, and has no density there"),
    ],
)
@pytest.mark.filterwarnings("ignore:x takes few:UserWarning", "ignore:.* occur before:UserWarning")
def test_rows_that_cannot_be_fitted_are_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small().fit(x, **QUICK)


@pytest.mark.parametrize("x", [[["a", "b"]], np.array([[{}]]), ROWS + 1j, ROWS > 0])
def test_what_holds_no_numbers_is_refused(x: Any) -> None:
    with pytest.raises(TypeError, match="x must hold real numbers, got"):
        small().fit(x, **QUICK)


def test_contexts_of_another_shape_are_refused() -> None:
    x, c = torch.randn(9, 2), torch.randn(9, 3)
    with pytest.raises(ValueError, match=r"context must be of width 3, got None"):
        small(2, 3).fit(x, **QUICK)
    with pytest.raises(ValueError, match=r"context must be None, got shape \(9, 3\)"):
        small(2).fit(x, c, **QUICK)
    with pytest.raises(ValueError, match=r"context must have shape \(N, 3\), got \(9, 2\)"):
        small(2, 3).fit(x, c[:, :2], **QUICK)
    with pytest.raises(ValueError, match="context must have as many rows as x, got 8 and 9"):
        small(2, 3).fit(x, c[:8], **QUICK)
    with pytest.raises(ValueError, match=r"context must have shape \(..., 3\), got \(2,\)"):
        small(2, 3).log_prob(x, c[0, :2])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validation": 1.5}, "validation must lie in [0, 1), or be rows, got 1.5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
        ({"max_seconds": -1.0}, "max_seconds must be positive and finite, got -1.0"),
        ({"lr": math.inf}, "lr must be positive and finite, got inf"),
        ({"polyak": 1.0}, "polyak must lie in [0, 1), got 1.0"),
        ({"schedule": "linear"}, "schedule must be one of cosine, plateau, constant"),
        ({"precision": "half"}, "precision must be one of float32, tf32, bfloat16"),
        ({"resume": True}, "resume needs checkpoint"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds must be at least 0 and finite"),
    ],
)
def test_an_option_out_of_its_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small().fit(ROWS, **{**QUICK, **options})


def test_repeated_rows_and_discrete_columns_are_warned_of() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 2))
    with pytest.warns(UserWarning, match="20 of 220 rows of x occur before"):
        small().fit(np.vstack([rows, rows[:20]]), max_epochs=1, **QUICK)
    rows[:, 1] = np.round(rows[:, 1])
    with pytest.warns(UserWarning, match="x takes few different values in column 1"):
        small().fit(rows, max_epochs=1, **QUICK)


def test_score_names_rows_that_are_not_finite_and_log_prob_gives_nan() -> None:
    density = small()
    with pytest.raises(ValueError, match="x holds 1 NaN and 0 infinite values, in row 3"):
        density.score(with_value(np.nan, 3))
    found = density.log_prob(with_value(np.nan, 3))
    assert np.isnan(found[3]) and np.isfinite(np.delete(found, 3)).all()


# ---------------------------------------------------------------------------------- scikit-learn


def test_score_samples_are_the_log_density_as_an_array(fitted: FlowDensity) -> None:
    x = bananas(50)
    for rows in (x, x.numpy(), x.tolist()):
        scores = fitted.score_samples(rows)
        assert isinstance(scores, np.ndarray)
        np.testing.assert_allclose(scores, fitted.log_prob(x.numpy()), rtol=1e-6)
        assert scores.mean() == pytest.approx(fitted.score(x))
    with pytest.raises(ValueError, match="1 NaN"):
        fitted.score_samples([[math.nan, 0.0]])


def test_set_params_makes_an_unfitted_density_of_the_same_dtype() -> None:
    density = small().double().fit(torch.randn(300, 2), max_steps=5, **QUICK)
    assert density.set_params() is density and density.history is not None
    assert density.set_params(architecture="made", hidden_dims=[4]) is density
    assert density.history is None and density.loc.eq(0).all()
    assert density.flow.log_prob(torch.randn(3, 2, dtype=torch.double)).dtype == torch.double
    shapes = [p.shape for p in density.parameters()]
    assert shapes == [p.shape for p in FlowDensity(2, 0, "made", hidden_dims=[4]).parameters()]
    with pytest.raises(ValueError, match="dropout must lie"):
        density.set_params(dropout=2.0)
    with pytest.raises(TypeError, match="unknown option 'width'"):
        density.set_params(width=2)
    assert density.get_params()["hidden_dims"] == [4]


def test_scikit_learn_clones_it_and_chooses_its_options() -> None:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = bananas(600).numpy()
    density = clone(small(name="maf-dsf-1", dropout=0.25).fit(x, max_steps=5, **QUICK))
    assert density.history is None and density.get_params()["dropout"] == 0.25
    params = {"max_steps": 150, "lr": 1e-2, **QUICK}
    search = GridSearchCV(density, {"dropout": [0.0, 0.9]}, cv=2)
    search.fit(x, **params)
    assert search.best_params_ == {"dropout": 0.0}
    # y is the context.
    conditional = small(1, 1, "maf-dsf-1")
    scores = cross_val_score(conditional, x[:, 1:], x[:, :1], cv=2, params=params)
    assert scores.shape == (2,)
    np.testing.assert_allclose(
        scores, -np.log(1e6) - 0.5 * np.log(2 * np.pi * 0.25) - 0.5, atol=0.5
    )
    scaled = make_pipeline(StandardScaler(), small(name="maf-dsf-1"))
    scaled.fit(x, flowdensity__max_steps=5, flowdensity__progress=False)
    assert np.isfinite(scaled.score(x)) and scaled.score_samples(x).shape == (600,)


def test_a_density_is_exported_for_any_number_of_rows() -> None:
    density = FlowDensity(3, architecture="maf-dsf-1", hidden_dims=[8]).eval()
    x, rows = torch.randn(20, 3), torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(density, (x,), dynamic_shapes=({0: rows},))
    torch.testing.assert_close(program.module()(x[:7] + 1), density.log_prob(x[:7] + 1))
