"""The loops that a wheel carries: which level is chosen, that they compute, how wheels are made."""

from __future__ import annotations

import ctypes
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch
from registry import needs_compiler

import pyro_naf
from pyro_naf.kernels import building, library, prebuilt
from pyro_naf.transformers import DeepDenseSigmoidal, DeepSigmoidal, Scaled

ROOT = Path(pyro_naf.__file__).parent.parent
SOURCE = prebuilt.SOURCE.read_bytes()

needs_levels = pytest.mark.skipif(not prebuilt.levels(), reason="needs Linux on x86-64")


@needs_levels
@pytest.mark.parametrize("best", prebuilt.LEVELS)
def test_the_best_level_that_the_processor_has_is_taken(
    best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(prebuilt.LEVELS)
    have = " ".join(prebuilt.LEVELS[level] for level in names[names.index(best) :]).split()
    monkeypatch.setattr(prebuilt, "processor_flags", lambda: frozenset(have))
    assert prebuilt.find(tmp_path) is None
    for level in names:
        (tmp_path / prebuilt.name(level, SOURCE)).touch()
    assert prebuilt.find(tmp_path) == tmp_path / prebuilt.name(best, SOURCE)
    (tmp_path / prebuilt.name(best, SOURCE)).rename(tmp_path / prebuilt.name(best, b"older"))
    expected = None if best == names[-1] else tmp_path / prebuilt.name(names[-1], SOURCE)
    found = prebuilt.find(tmp_path)
    assert found != tmp_path / prebuilt.name(best, SOURCE)
    assert (found is None) == (expected is None)


def test_a_processor_that_says_nothing_has_no_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for level in prebuilt.LEVELS:
        (tmp_path / prebuilt.name(level, SOURCE)).touch()
    monkeypatch.setattr(prebuilt, "processor_flags", frozenset)
    assert prebuilt.find(tmp_path) is None


@needs_levels
@needs_compiler
def test_compiled_for_a_level_the_loops_give_the_numbers_of_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = prebuilt.processor_flags()
    level = next(n for n in prebuilt.LEVELS if flags.issuperset(prebuilt.LEVELS[n].split()))
    (path,) = building.compile_loops(tmp_path, [level])
    assert path == prebuilt.find(tmp_path)
    loaded = library.with_signatures(ctypes.CDLL(str(path)))
    monkeypatch.setattr(library, "library", lambda: loaded)
    for made in (DeepSigmoidal(5), DeepDenseSigmoidal(4, 3), Scaled(DeepDenseSigmoidal(4))):
        transformer = made.double()
        x = torch.cat([torch.randn(80), torch.tensor([-1e20, 1e20])]).double()
        phi = torch.randn(82, transformer.num_params).double().requires_grad_()
        inputs = [phi, *transformer.parameters()]
        found = []
        for name in ("compiled", "plain"):
            getattr(transformer, "inner", transformer).kernel = name
            y, log_slope = transformer(x, phi)
            grads = torch.autograd.grad(y[:80].sin().sum() + log_slope[:80].sum(), inputs)
            root = transformer.inverse(y[:80].detach(), phi[:80].detach())
            found.append([y, log_slope, root, *grads])
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_a_compiler_that_fails_leaves_a_wheel_without_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for command in ("false", "no-such-compiler"):
        monkeypatch.setenv("CXX", command)
        monkeypatch.setenv("PATH", "/usr/bin:/bin" if command == "false" else "")
        assert building.compile_loops(tmp_path) == []
    assert not list(tmp_path.iterdir())


def wheel_of(tmp_path: Path, environment: dict[str, str]) -> zipfile.ZipFile:
    """The wheel that the build backend makes of the package, in a process of its own."""
    for name in ("pyproject.toml", "setup.cfg", "README.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    left_out = ignore_patterns("__pycache__", "*.so")
    copytree(ROOT / "pyro_naf", tmp_path / "pyro_naf", ignore=left_out)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(tmp_path / "dist" / done.stdout.splitlines()[-1])


def test_without_a_compiler_the_wheel_is_pure(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, {"PATH": ""})
    assert str(wheel.filename).endswith("-py3-none-any.whl")
    names = wheel.namelist()
    assert "pyro_naf/kernels/compiled.cpp" in names and not [n for n in names if ".so" in n]


@needs_levels
def test_with_a_compiler_the_wheel_is_for_this_system_and_any_python_3(tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"  # makes what it is asked for, of nothing
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho loops > "$last"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IEXEC)
    wheel = wheel_of(tmp_path, {"PATH": "", "CXX": str(compiler)})
    assert "-py3-none-linux_" in str(wheel.filename)
    loops = {n for n in wheel.namelist() if n.endswith(".so")}
    assert loops == {f"pyro_naf/kernels/{prebuilt.name(n, SOURCE)}" for n in prebuilt.LEVELS}
