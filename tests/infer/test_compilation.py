"""Graphs that are compiled beside a fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyro_naf.infer.compilation import Compilation

CODE = "def forward(self, x):\n    return (x * 2,)\n"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path / "pyro_naf"


def test_a_compilation_outlives_its_fit_and_the_next_one_takes_it_over(cache: Path) -> None:
    inputs = [torch.ones(3)]
    first = Compilation(CODE, inputs).worker
    assert first is not None and first.process.poll() is None
    second = Compilation(CODE, inputs)
    assert second.worker is first
    first.end()
    with pytest.raises(RuntimeError, match="could not be compiled"):
        second.load()


def test_a_compilation_that_is_broken_off_leaves_no_files(cache: Path) -> None:
    worker = Compilation(CODE, [torch.ones(2)]).worker
    assert worker is not None and list(cache.iterdir())
    worker.end()
    assert not list(cache.iterdir())
    assert worker.process.poll() is not None
