"""The notebooks run from top to bottom without a warning, and are stored as they ran."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401  builds its cache here: a kernel would say so
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

#: Run before a notebook: less of what it leaves to the defaults, which takes most of its time.
SMALLER_DEFAULTS = """
from pyro_naf.infer import RefineSettings, mcmc_correct, refine, refinement
mcmc_correct.__wrapped__.__kwdefaults__.update(num_samples=250, warmup_steps=150)
refine.__wrapped__.__kwdefaults__.update(num_starts=4)
refinement.DEFAULTS = RefineSettings(judging_draws=5000)
del RefineSettings, mcmc_correct, refine, refinement
"""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def complaints(notebook: Any) -> list[str]:
    """What any cell wrote to the standard error, and errors."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    written = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    return written + [o.evalue for o in outputs if o.output_type == "error"]


@each
def test_notebook_runs_with_reduced_settings_and_prints_no_warning(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_NAF_TUTORIAL", "reduced")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(path)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SMALLER_DEFAULTS))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
    assert complaints(notebook) == []


@each
def test_stored_notebook_was_run_in_one_go_at_full_length(path: Path) -> None:
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert complaints(read(path)) == []
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    # A first cell, the only one that reads the environment, chooses the settings.
    assert 'os.environ.get("PYRO_NAF_TUTORIAL") == "reduced"' in cells[0].source
    assert not any("os.environ" in cell.source for cell in cells[1:])


@each
def test_notebook_is_small_and_says_what_for_and_what_next(path: Path) -> None:
    assert path.stat().st_size < 1.5e6
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert "you will be able to" in text and "## Exercises" in text
    for link in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (FOLDER / link).exists(), link


@each
def test_notebook_uses_the_public_interface_alone(path: Path) -> None:
    source = "\n".join(cell.source for cell in code_cells(read(path)))
    assert not re.findall(r"pyro_naf[\w.]*\._\w+|import _\w+|\w\._[a-z]\w+", source)


def test_figures_beside_published_ones_are_those_of_the_benchmarks() -> None:
    cells = code_cells(read(FOLDER / "05_density_estimation.ipynb"))
    (table,) = [cell.source for cell in cells if "PUBLISHED.items()" in cell.source]
    ours = re.findall(r'"([\d.]+) ± ([\d.]+)"', table)
    results = (FOLDER.parent / "tests/benchmarks/results/density.md").read_text(encoding="utf-8")
    measured = re.findall(r"\| ([\d.]+) ± ([\d.]+) \|", results)
    rounded = {(f"{float(mean):.2f}", f"{float(error):.2f}"[1:]) for mean, error in measured}
    assert len(ours) >= 4 and set(ours) <= rounded


@each
def test_every_picture_has_an_alt_text(path: Path) -> None:
    for cell in code_cells(read(path)):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert len(cell.metadata["mystnb"]["image"]["alt"].split()) > 5, cell.source


def test_readme_lists_the_notebooks_in_order() -> None:
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert listed == [path.name for path in NOTEBOOKS]
