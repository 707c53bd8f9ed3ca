"""Data sets: every recipe on stand-ins with the raw formats' quirks; toys against their truth."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_naf.density import datasets
from pyro_naf.density.datasets import patches, reference, tables
from pyro_naf.density.datasets.energies import ENERGIES, log_normaliser
from pyro_naf.density.datasets.pictures import Picture
from pyro_naf.density.datasets.toys import SHAPES, GaussianGrid

RNG = np.random.default_rng(0)


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------- POWER

POWER_HEADER = (
    "Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;"
    "Sub_metering_1;Sub_metering_2;Sub_metering_3"
)


def power_lines(n: int) -> list[str]:
    def line(i: int) -> str:
        when = f"16/12/2006;{i // 60 % 24:02d}:{i % 60:02d}:00"
        active, voltage = 4 + i % 7 / 1000, 230 + i % 11 / 100
        return f"{when};{active:.3f};0.418;{voltage:.3f};18.4;0.000;{i % 3}.000;17.0"

    return [POWER_HEADER, *map(line, range(n))]


def test_power_leaves_out_rows_with_missing_values(tmp_path: Path) -> None:
    lines = power_lines(1000)
    lines.insert(500, "28/4/2007;00:21:00;?;?;?;?;?;?;")  # as the owner marks them
    write(tmp_path / "household_power_consumption.txt", lines)
    split = tables.load_power(tmp_path, check=False)
    assert split.sizes == (810, 90, 100)
    rows = np.vstack(split)
    assert rows.shape == (1000, 6) and rows.dtype == np.float32
    np.testing.assert_allclose(np.vstack(split[:2]).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.vstack(split[:2]).std(0), 1, atol=1e-4)


def test_power_noise_is_as_wide_as_the_steps_and_drawn_in_the_papers_order() -> None:
    rows = np.zeros((100, 8))
    rows[:, 7] = np.arange(100)
    split = tables.prepare_power(rows)
    # The same by the recipe, line by line.
    rng = np.random.RandomState(42)
    order = np.arange(100.0)[:, None].copy()
    rng.shuffle(order)
    voltage, active, sub = 0.01 * rng.rand(100, 1), 0.001 * rng.rand(100, 1), rng.rand(100, 3)
    expected = np.hstack([active, voltage, sub, order])
    known = expected[:90]
    expected = (expected - known.mean(0)) / known.std(0)
    np.testing.assert_allclose(np.vstack(split), expected, atol=1e-5)


# --------------------------------------------------------------------------------------------- GAS


def gas_rows(n: int) -> np.ndarray:
    sensors = RNG.normal(size=(n, 16))
    sensors[:, 5] = sensors[:, 2] + 0.01 * sensors[:, 5]  # a pair that says the same
    sensors[:, 9] = sensors[:, 2] + 0.01 * sensors[:, 9]  # and a third
    return np.hstack([np.arange(n)[:, None] / 100, RNG.uniform(size=(n, 2)), sensors])


def test_gas_draws_a_quarter_and_drops_correlated_sensors(tmp_path: Path) -> None:
    rows = gas_rows(4000)
    header = "Time (seconds), CO conc (ppm), Ethylene conc (ppm), sensor readings (16 channels)"
    write(
        tmp_path / "gas" / "ethylene_CO.txt",
        [header, *(" ".join(f"{v:.6f}" for v in row) + " " for row in rows)],
    )
    split = tables.load_gas(tmp_path, check=False)
    assert split.sizes == (810, 90, 100) and split.train.shape[1] == 14
    correlations = np.corrcoef(np.vstack(split).T) - np.eye(14)
    assert correlations.max() < 0.98
    # Standardised by all rows, test included, by the sample's standard deviation.
    np.testing.assert_allclose(np.vstack(split).std(0, ddof=1), 1, atol=1e-5)


# ----------------------------------------------------------------------------------------- HEPMASS


def test_hepmass_keeps_class_one_and_drops_columns_with_atoms(tmp_path: Path) -> None:
    def lines(n: int, comma: str) -> list[str]:
        rows = RNG.normal(size=(n, 28))
        rows[:, 0] = np.arange(n) % 2
        rows[:, 4] = np.maximum(rows[:, 4], 0)  # half of them at the smallest value
        header = "# label," + ",".join(f"f{i}" for i in range(27))
        return [header, *(",".join(f"{v:.18e}" for v in row) + comma for row in rows)]

    write(tmp_path / "hepmass" / "1000_train.csv", lines(2000, ""))
    with gzip.open(tmp_path / "hepmass" / "1000_test.csv.gz", "wt") as file:
        file.write("\n".join(lines(500, ",")))
    split = tables.load_hepmass(tmp_path, check=False)
    assert split.sizes == (900, 100, 250) and split.train.shape[1] == 26
    known = np.vstack(split[:2]).astype(np.float64)
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(known.std(0, ddof=1), 1, atol=1e-6)


# --------------------------------------------------------------------------------------- MINIBOONE


def test_miniboone_keeps_whole_signal_rows(tmp_path: Path) -> None:
    rows = RNG.normal(size=(1500, 50))
    rows[7] = -999.0  # as the owner marks missing values
    rows[:1000, 12] = np.maximum(rows[:1000, 12], -0.5)
    counts = f" {1000} {500}"
    write(
        tmp_path / "MiniBooNE_PID.txt",
        [counts, *("  ".join(f"{v:.6f}" for v in row) for row in rows)],
    )
    split = tables.load_miniboone(tmp_path, check=False)
    assert split.sizes == (810, 90, 99)
    assert split.train.shape[1] == 49
    np.testing.assert_allclose(np.vstack(split[:2]).std(0), 1, atol=1e-4)


# ----------------------------------------------------------------------------------------- BSDS300


def test_patches_are_pixels_with_noise_about_their_mean() -> None:
    images = RNG.integers(256, size=(30, 20, 24), dtype=np.uint8)
    rows = patches.patches(images, 500, np.random.default_rng(1))
    assert rows.shape == (500, 63) and rows.dtype == np.float32
    # With the last pixel, which is minus the sum of the others, the first patch is in an image.
    full = np.append(rows[0], -rows[0].sum()).reshape(8, 8) * 256
    views = np.lib.stride_tricks.sliding_window_view(images.astype(float), (1, 8, 8))
    views = views.reshape(-1, 8, 8)
    gaps = views - views.mean((1, 2), keepdims=True) - full
    # Noise U[0, 1) about its mean: within 1 of the pixels, and in no other place.
    assert (np.abs(gaps).max((1, 2)) < 1.0).sum() == 1


def test_bsds300_is_cut_from_other_images_for_validation_and_test(tmp_path: Path) -> None:
    from PIL import Image

    for part, n in (("train", 23), ("test", 3)):
        folder = tmp_path / "BSDS300" / "images" / part
        folder.mkdir(parents=True)
        for i in range(n):
            size = (20, 16) if i % 2 else (16, 20)
            pixels = RNG.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    split = patches.load_bsds300(tmp_path, check=False)
    assert split.sizes == (1000, 100, 200) and split.train.shape[1] == 63
    with pytest.raises(datasets.DataError, match="train must hold 200 images, got 23"):
        datasets.load("bsds300", tmp_path)
    with pytest.raises(datasets.DataError, match="more than 20 images are needed, got 20"):
        patches.patch_split(np.zeros((20, 9, 9), np.uint8), np.zeros((1, 9, 9), np.uint8))


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("name", ["power", "gas", "hepmass", "miniboone", "bsds300"])
def test_a_missing_file_says_what_to_download_and_where_to_put_it(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(datasets.DataError) as raised:
        datasets.load(name, tmp_path)
    message = str(raised.value)
    assert "download" in message and "https://" in message and str(tmp_path / name) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "lines, message",
    [
        (["a;b"], "does not begin with Date;Time;Global_active_power"),
        ([POWER_HEADER], "holds no rows"),
        ([*power_lines(3), "16/12/2006;17:24:00;4.2"], "expected 8 numbers, got '16/12/2006;17:24"),
        ([*power_lines(3), "garbage"], "expected 8 numbers, got 'garbage'"),
        (power_lines(100), "gives (81, 9, 10) rows to train, validate and test on, but power has"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "household_power_consumption.txt", lines)
    with pytest.raises(datasets.DataError, match=re.escape(message)):
        datasets.load("power", tmp_path)


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(ValueError, match=r"name must be one of power, gas.*got 'mnist'"):
        datasets.load("mnist", ".")


def full_gaussian(split: datasets.Split) -> tuple[float, float]:
    train = torch.from_numpy(split.train).double()
    gaussian = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    values = gaussian.log_prob(torch.from_numpy(split.test).double())
    return float(values.mean()), 2 * float(values.std()) / len(values) ** 0.5


def test_the_power_subset_scores_as_published_under_a_gaussian(data_dir: Path) -> None:
    split = reference.power_subset(data_dir)
    assert split.sizes == (225_878, 25_097, 27_886)
    assert full_gaussian(split)[0] == pytest.approx(-7.8, abs=0.1)  # -7.74 on the whole set


def test_rebuilt_bsds300_scores_as_published_under_a_gaussian(data_dir: Path) -> None:
    mean, two_se = full_gaussian(reference.bsds300(data_dir, rows=(100_000, 1000, 50_000)))
    assert abs(mean - 96.67) < 0.25 + two_se


def test_protein_is_split_and_standardised(data_dir: Path) -> None:
    split = reference.protein(data_dir)
    assert sum(split.sizes) == 44_018 and split.train.shape[1] == 10
    assert len(np.unique(split.train, axis=0)) == len(split.train)


def test_reference_data_that_is_missing_is_named(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(datasets.DataError, match=r"protein.npz is missing from the folder"):
        reference.protein(tmp_path)
    monkeypatch.delenv("PYRO_NAF_DATA", raising=False)
    with pytest.raises(datasets.DataError, match="set PYRO_NAF_DATA to the folder"):
        reference.protein()


# -------------------------------------------------------------------------------------------- toys


@pytest.mark.parametrize("side", [5, 10])
def test_the_bound_of_a_grid_of_gaussians_is_its_mean_log_density(side: int) -> None:
    grid = GaussianGrid(side)
    x = grid.sample(200_000, torch.Generator().manual_seed(0)).double()
    values = grid.log_prob(x)
    se = float(values.std()) / len(x) ** 0.5
    assert grid.log_likelihood_bound() == pytest.approx(float(values.mean()), abs=4 * se)
    # Modes that do not overlap: the entropy of one, and of the choice between them.
    separate = -2 * math.log(side) - 2 * math.log(0.1) - math.log(2 * math.pi) - 1
    assert grid.log_likelihood_bound() == pytest.approx(separate, abs=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_finite_and_follow_their_generator(name: str) -> None:
    first, second = (SHAPES[name](500, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (500, 2) and torch.equal(first, second)
    assert torch.isfinite(first).all() and (first.std(0) > 0.3).all()


def test_checkerboard_draws_lie_on_the_black_fields() -> None:
    x = (SHAPES["checkerboard"](2000, torch.Generator().manual_seed(0)) / 2 + 2).floor()
    assert ((x.sum(1).long() % 2) == int(x[0].sum()) % 2).all()


def test_a_picture_is_drawn_from_in_proportion_to_its_darkness() -> None:
    picture = Picture(torch.tensor([[0.0, 3.0, 2.0], [3.0, 3.0, 0.0]]))
    x = picture.sample(20_000, torch.Generator().manual_seed(0))
    assert x[:, 0].abs().max() <= 1 and x[:, 1].abs().max() <= 2 / 3
    upper_left = ((x[:, 0] < -1 / 3) & (x[:, 1] > 0)).double().mean()
    assert float(upper_left) == pytest.approx(3 / 7, abs=0.02)
    p = torch.tensor([3.0, 1.0, 3.0]) / 7
    bound = float((p * (p / (2 / 3) ** 2).log()).sum())
    assert picture.log_likelihood_bound() == pytest.approx(bound)


def test_a_picture_is_read_from_a_file(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(tmp_path / "picture.png")
    x = Picture.open(tmp_path / "picture.png").sample(10, torch.Generator().manual_seed(0))
    assert (x[:, 0] < 0).all() and (x[:, 1] > 0).all()


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.ones(2, 2), torch.full((2, 2), math.nan)])
def test_what_is_no_picture_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="brightness must"):
        Picture(bad)


@pytest.mark.parametrize("name", ENERGIES)
def test_the_normaliser_of_an_energy_is_right(name: str) -> None:
    side = torch.linspace(-9, 9, 1801, dtype=torch.double)
    z = torch.cartesian_prod(side, side)
    total = torch.exp(-ENERGIES[name](z)).sum() * (side[1] - side[0]) ** 2
    assert log_normaliser(name) == pytest.approx(float(total.log()), abs=1e-5)
