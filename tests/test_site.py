"""The site builds without a warning, has every public name, and no link in it is dead."""

from __future__ import annotations

import html.parser
import importlib
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SITE = ROOT / "tutorials" / "site"

#: Modules whose ``__all__`` is public.
MODULES = ["transforms", "transformers", "conditioners", "infer", "density", "plotting"]
MODULES = [f"pyro_naf.{name}" for name in [*MODULES, "density.datasets"]]


class Page(html.parser.HTMLParser):
    """Links of a page, what its links may point at, and pictures without an alt text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.unnamed: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        self.links += [given[name] for name in ("href", "src") if name in given]
        is_picture = tag == "img" and "_static/" not in given["src"]  # and no icon of Sphinx's
        if is_picture and len(given.get("alt", "").split()) < 3:
            self.unnamed.append(given["src"])


def build(folder: Path) -> dict[Path, Page]:
    """The pages of the site, built there with warnings as errors."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(SITE)]
    built = subprocess.run(
        [*command, str(ROOT), str(folder)], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert built.returncode == 0, built.stderr
    return {path.resolve(): Page(path) for path in folder.rglob("*.html")}


def missing_names(pages: dict[Path, Page]) -> set[str]:
    """Public names, after the module that has them, without an entry in the reference."""
    found = {i for path, page in pages.items() if path.parent.name == "reference" for i in page.ids}
    names: set[str] = set()
    for module in map(importlib.import_module, MODULES):
        for name in set(module.__all__) - {"datasets"}:  # a page, not an entry
            is_module = isinstance(getattr(module, name), ModuleType)
            names.add(f"{'module-' if is_module else ''}{module.__name__}.{name}")
    return names - found


def dead_links(pages: dict[Path, Page]) -> list[tuple[str, str]]:
    """Links within the site to a file or a place that is not there, by page."""
    dead = []
    for path, page in pages.items():
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            is_there = target.exists()
            if is_there and url.fragment and target in pages:
                is_there = url.fragment in pages[target].ids
            if not is_there:
                dead.append((path.name, link))
    return dead


def unrendered(pages: dict[Path, Page]) -> list[str]:
    """Pages of the reference that show the markup of a docstring: backquotes, a role's name."""
    shown = re.compile(r"[`]{2}|:(class|func|meth|mod|math|attr):")
    reference = [path for path in pages if path.parent.name == "reference"]
    return [path.name for path in reference if shown.search(path.read_text(encoding="utf-8"))]


def loaded_from_elsewhere(pages: dict[Path, Page]) -> list[str]:
    """Pages that a browser would need a network for."""
    wants = ('src="http', 'rel="stylesheet" href="http', 'src="//')
    texts = {path.name: path.read_text(encoding="utf-8") for path in pages}
    return [name for name, text in texts.items() if any(want in text for want in wants)]


# One test, so that the site is built once however many processes share the tests.
def test_the_site_is_built_without_a_warning_and_is_whole(tmp_path: Path) -> None:
    for needed in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(needed, reason="the extra 'docs' is not installed")
    pages = build(tmp_path)
    assert len(pages) > 40
    assert missing_names(pages) == set()
    assert dead_links(pages) == []
    assert unrendered(pages) == []
    assert loaded_from_elsewhere(pages) == []
    assert [picture for page in pages.values() for picture in page.unnamed] == []


def test_the_checks_of_the_site_see_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<a href="none.html">x</a><a href="#none">x</a><a href="#here" id="here">x</a>'
        '<img src="https://elsewhere/a.png" alt=""><img src="page.html" alt="a picture of nothing">'
    )
    pages = {page.resolve(): Page(page)}
    assert dead_links(pages) == [("page.html", "none.html"), ("page.html", "#none")]
    assert loaded_from_elsewhere(pages) == ["page.html"]
    assert pages[page.resolve()].unnamed == ["https://elsewhere/a.png"]
    assert {"pyro_naf.infer.refine", "pyro_naf.conditioners.MADE"} <= missing_names(pages)
