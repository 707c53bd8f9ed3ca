"""Every snippet of the README and of the how-to pages runs; every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro
import pytest

from pyro_naf.infer import RefineSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOW_TO = sorted((ROOT / "tutorials" / "how_to").glob("*.md"))
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "tutorials").glob("*.md")),
    *HOW_TO,
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "tests" / "benchmarks").rglob("*.md")),
]

#: What makes a snippet short: less time, fewer steps.
SHORTER = [
    (r"(\.refine\()seconds=\d+", r"\1steps=10"),
    (r"\bseconds=\d+", "steps=30, num_starts=2, num_draws=1000"),
    (r"seed=0\)", "seed=0, progress=False)"),
    (r"y, progress=False", "y, num_starts=1, num_draws=1000, progress=False"),
    (r"FlowDensity\(\)\.fit", "FlowDensity(max_seconds=1).fit"),
    (r"range\(500\)|range\(steps\)", "range(30)"),
    (r"num_simulations=\d+", "num_simulations=10, progress=False"),
    (r"(= mcmc_correct\(.*)\)", r"\1, num_samples=100, warmup_steps=50)"),
]


def snippets(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


SNIPPETS = snippets(ROOT / "README.md")


def run(snippet: str, names: dict[str, Any]) -> None:
    for pattern, shorter in SHORTER:
        snippet = re.sub(pattern, shorter, snippet)
    exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102


@pytest.fixture(autouse=True)
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYRO_NAF_COMPILE", "0")
    monkeypatch.setattr("pyro_naf.infer.refinement.DEFAULTS", RefineSettings(judging_draws=2000))
    monkeypatch.setattr("pyro_naf.infer.base_space._POOL", 2000)
    monkeypatch.setattr("pyro_naf.density.gaussian_mixture.STARTS", 1)
    monkeypatch.setattr("pyro_naf.density.gaussian_mixture.MAX_STEPS", 50)


# Of what was cut short; and of ArviZ, once a process, that it will change.
cut_short = pytest.mark.filterwarnings(
    "ignore:do not trust:UserWarning",
    "ignore:k-hat of the guide:UserWarning",
    r"ignore:\s*ArviZ is undergoing:FutureWarning",
)


@cut_short
@pytest.mark.parametrize("i", range(len(SNIPPETS)))
def test_snippet_runs_alone(i: int) -> None:
    run(SNIPPETS[i], {})


@cut_short
@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *HOW_TO], ids=lambda page: str(page.relative_to(ROOT))
)
def test_snippets_run_one_after_the_other_in_one_notebook(page: Path) -> None:
    names: dict[str, Any] = {}
    for snippet in snippets(page):
        pyro.clear_param_store()
        run(snippet, names)


def test_every_how_to_page_has_snippets_and_is_listed() -> None:
    contents = next(page for page in HOW_TO if page.name == "README.md")
    listed = re.findall(r"\]\((\w+\.md)\)", contents.read_text(encoding="utf-8"))
    pages = [page for page in HOW_TO if page != contents]
    assert sorted(listed) == [page.name for page in pages]
    assert all(snippets(page) for page in pages)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150 and len(SNIPPETS) >= 5
    benchmarks = (ROOT / "tests" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert len(benchmarks.splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:|#", link):
            assert (page.parent / link.split("#")[0]).exists(), link
