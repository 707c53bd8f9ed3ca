"""Every test starts from an empty param store, a fixed seed and torch's own default dtype."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch


def pytest_configure() -> None:
    # Without a GPU, Triton's interpreter runs its kernels; it must know before they are imported.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # Parallel workers share the cores: more threads in each would only wait for one another.
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
        torch.set_num_threads(1)
        # A pool of processes to compile in would too, and each imports torch first.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled():
        yield
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the numerical tests run: PYRO_NAF_DEVICE, by default the CPU."""
    return torch.device(os.environ.get("PYRO_NAF_DEVICE", "cpu"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of reference data that PYRO_NAF_DATA names; without it the test is skipped."""
    folder = os.environ.get("PYRO_NAF_DATA")
    if not folder:
        pytest.skip("set PYRO_NAF_DATA to the folder of reference data to run this test")
    return Path(folder)
