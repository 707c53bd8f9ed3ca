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


def test_a_compilation_nobody_waits_for_ends_when_another_begins(cache: Path) -> None:
    first = Compilation(CODE, [torch.ones(4)]).worker
    second = Compilation(CODE, [torch.ones(5)])
    assert first is not None and first.process.poll() is not None
    assert second.worker is not None and second.worker.process.poll() is None
    second.worker.end()


def test_a_fork_leaves_the_compilation_of_its_parent_alone(cache: Path) -> None:
    compilation = Compilation(CODE, [torch.ones(6)])
    assert compilation.worker is not None
    compilation.worker.pid -= 1  # as a fork sees the worker
    assert not compilation.has_ended()
    compilation.worker.pid += 1
    compilation.worker.end()
