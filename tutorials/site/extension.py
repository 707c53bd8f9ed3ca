"""What the site needs beyond Sphinx: formulas without scripts, pictures, help of commands."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from pyro_naf.cli import main

#: LaTeX that docutils does not know, and what says nearly the same.
_SIMPLER = [
    (r"\\[bB]igg?[lr]?(?![a-zA-Z])", ""),
    (r"\\textstyle\s*", ""),
    (r"\\dots\b", r"\\ldots"),
    (r"\\[td]?frac(\d)(\\[a-zA-Z]+|\w)", r"\\frac{\1}{\2}"),
]

#: A function's name without brackets after it, and the space that sets its argument apart.
_APPLIED = re.compile(r"<mo>&ApplyFunction;</mo>(?!\s*(<mrow>\s*)?<mo[^>]*>[(\[{])")
_SPACE = '<mspace width="0.25em"></mspace>'


def mathml(node: nodes.math | nodes.math_block) -> str:
    r"""A formula as MathML, which browsers show by themselves, and before it its ``\tag``."""
    tex = node.astext()
    tag = re.search(r"\\tag(\*?)\{(.*?)\}", tex)
    tex = re.sub(r"\\tag\*?\{.*?\}", "", tex)
    for pattern, simpler in _SIMPLER:
        tex = re.sub(pattern, simpler, tex)
    try:
        found = tex2mathml(tex.strip(), as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logging.getLogger(__name__).warning("%s in %r", error, tex, location=node)
        return ""
    number = (tag[2] if tag[1] else f"({tag[2]})") if tag else ""
    return f'<span class="eqno">{number}</span>{_APPLIED.sub(_SPACE, found)}'


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{mathml(node)}</div>')
    raise nodes.SkipNode


class NotebookPictures(SphinxDirective):
    """All pictures of a notebook, leading to it, with the alt texts of the cells that drew them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = Path(self.get_source_info()[0]).parent / self.arguments[0]
        self.env.note_dependency(str(path))
        folder = Path(self.env.app.doctreedir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        here, lines = Path(self.env.doc2path(self.env.docname)).parent, []
        for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    picture = folder / f"{path.stem}-{i}.png"
                    picture.write_bytes(base64.b64decode("".join(output["data"]["image/png"])))
                    alt = cell["metadata"]["mystnb"]["image"]["alt"]
                    place = os.path.relpath(picture, here)
                    lines.append(f"[![{alt}]({place})]({self.arguments[0]})")
        found = nodes.container(classes=["pictures"])
        self.state.nested_parse(lines, self.content_offset, found)
        return [found]


class CommandHelp(Directive):
    """What a command of pyro-naf prints for ``--help``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        printed = io.StringIO()
        plain = mock.patch.dict(os.environ, COLUMNS="88", NO_COLOR="1")
        with redirect_stdout(printed), plain, suppress(SystemExit):
            main([self.arguments[0], "--help"])
        return [nodes.literal_block(text=printed.getvalue(), language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.add_directive("notebook-pictures", NotebookPictures)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
