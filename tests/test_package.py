"""What importing the package does, and what its names are."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro.distributions.transforms as pyro_transforms
import pytest

import pyro_naf
import pyro_naf.transformers
import pyro_naf.transforms

ROOT = Path(pyro_naf.__file__).parent.parent

NAMES = [
    "AutoregressiveFlow",
    "DeepSigmoidalFlow",
    "DeepDenseSigmoidalFlow",
    "AffineAutoregressiveFlow",
    "ConditionalDeepSigmoidalFlow",
    "ConditionalDeepDenseSigmoidalFlow",
    "ConditionalAffineAutoregressiveFlow",
    "deep_sigmoidal_flow",
    "deep_dense_sigmoidal_flow",
    "affine_autoregressive_flow",
    "conditional_deep_sigmoidal_flow",
    "conditional_deep_dense_sigmoidal_flow",
    "conditional_affine_autoregressive_flow",
]


def run_python(code: str) -> str:
    """Runs ``code`` in a fresh interpreter in which warnings are errors; returns what it prints."""
    # SyntaxWarnings and the like of other packages are not ours to judge.
    command = [sys.executable, "-W", "error::UserWarning:pyro_naf", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_name_is_public_here_and_an_attribute_of_pyros_transforms(name: str) -> None:
    assert name in pyro_naf.transforms.__all__
    assert getattr(pyro_naf, name) is getattr(pyro_naf.transforms, name)
    assert getattr(pyro_transforms, name) is getattr(pyro_naf.transforms, name)


def test_star_import_gives_what_all_says() -> None:
    for module in (pyro_naf, pyro_naf.transforms, pyro_naf.transformers):
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name)


def test_import_leaves_all_alone_replaces_nothing_and_may_be_repeated() -> None:
    out = run_python(
        "import importlib, pyro.distributions.transforms as t\n"
        "all_before, names_before = list(t.__all__), {n: getattr(t, n) for n in dir(t)}\n"
        "theirs = object()\n"
        "t.deep_sigmoidal_flow = theirs\n"
        "import pyro_naf\n"
        "first = {n: getattr(t, n) for n in pyro_naf.transforms.__all__}\n"
        "assert t.deep_sigmoidal_flow is theirs\n"
        "assert pyro_naf.deep_sigmoidal_flow is not theirs\n"
        "assert t.DeepSigmoidalFlow is pyro_naf.DeepSigmoidalFlow\n"
        "importlib.reload(pyro_naf)\n"
        "assert all(getattr(t, n) is first[n] for n in first)\n"
        "assert t.__all__ == all_before and list(t.__all__) == all_before\n"
        "assert all(getattr(t, n) is names_before[n] for n in names_before)\n"
        "assert not [n for n in vars(pyro_naf) if n in ('_name', '_pyro_transforms')]\n"
        "print('ok', pyro_naf.__version__)\n"
    )
    assert out == f"ok {pyro_naf.__version__}\n"


def test_import_is_silent_and_draws_nothing_from_the_generators() -> None:
    out = run_python(
        "import numpy as np, random, torch\n"
        "torch.manual_seed(0); np.random.seed(0); random.seed(0)\n"
        "before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()\n"
        "dtype, threads = torch.get_default_dtype(), torch.get_num_threads()\n"
        "import pyro_naf, sys\n"
        "assert torch.equal(torch.get_rng_state(), before[0])\n"
        "assert (str(np.random.get_state()), random.getstate()) == before[1:]\n"
        "assert (torch.get_default_dtype(), torch.get_num_threads()) == (dtype, threads)\n"
        "assert 'matplotlib' not in sys.modules and 'triton' not in sys.modules\n"
    )
    assert out == ""


def test_reloading_in_this_process_keeps_what_is_registered() -> None:
    before = pyro_transforms.DeepSigmoidalFlow
    importlib.reload(pyro_naf)
    assert pyro_transforms.DeepSigmoidalFlow is before
    assert pyro_naf.DeepSigmoidalFlow is before


def test_factories_take_the_arguments_that_the_design_fixes() -> None:
    def names(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    transforms = pyro_naf.transforms
    assert names(transforms.deep_sigmoidal_flow)[:3] == ["input_dim", "hidden_dims", "hidden_units"]
    assert names(transforms.deep_dense_sigmoidal_flow)[:4] == [
        "input_dim",
        "hidden_dims",
        "hidden_units",
        "num_layers",
    ]
    assert names(transforms.affine_autoregressive_flow)[:2] == ["input_dim", "hidden_dims"]
    assert names(transforms.conditional_deep_sigmoidal_flow)[:4] == [
        "input_dim",
        "context_dim",
        "hidden_dims",
        "hidden_units",
    ]
    for cls, expected in [
        (transforms.AutoregressiveFlow, ["conditioner", "transformer"]),
        (transforms.DeepSigmoidalFlow, ["conditioner", "hidden_units"]),
        (transforms.DeepDenseSigmoidalFlow, ["conditioner", "hidden_units", "num_layers"]),
        (transforms.AffineAutoregressiveFlow, ["conditioner"]),
    ]:
        assert names(cls)[: len(expected)] == expected


def test_package_says_that_it_is_typed() -> None:
    assert (Path(pyro_naf.__file__).parent / "py.typed").exists()


def test_version_is_a_version() -> None:
    assert [int(part) for part in pyro_naf.__version__.split(".")]


def test_version_is_the_one_of_changelog_and_citation() -> None:
    package = Path(pyro_naf.__file__).parent
    changelog = (package / "CHANGELOG.md").read_text()
    assert changelog.split("\n## ")[1].splitlines()[0] == pyro_naf.__version__
    citation = (ROOT / ".github" / "CITATION.cff").read_text()
    assert f"\nversion: {pyro_naf.__version__}\n" in citation
    assert "Apache License" in (package / "LICENSE").read_text()


def test_top_level_holds_what_it_may() -> None:
    allowed = {"setup.cfg", "pyproject.toml", "README.md", "pyro_naf", "tests", "tutorials"}
    ran = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if ran.returncode:
        pytest.skip("not a checkout")
    tops = {line.split("/")[0] for line in ran.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} <= allowed


def test_old_import_paths_lead_to_the_same_functions():
    from pyro_naf.density import parallel
    from pyro_naf.infer import refinement
    from pyro_naf.training import parallel as core

    assert parallel.start is core.start and parallel.rank is core.rank
    assert callable(refinement.fit_gaussian) and callable(refinement.diagnose)
    assert callable(refinement.several) and callable(refinement.missed_mass)
