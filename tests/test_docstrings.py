"""Every public name says what it is, which shapes it takes, and shows itself at work."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
from typing import Any

import pytest

MODULES = [
    "pyro_naf.transforms",
    "pyro_naf.transformers",
    "pyro_naf.conditioners",
    "pyro_naf.infer",
    "pyro_naf.density",
    "pyro_naf.density.datasets",
    "pyro_naf.plotting",
]

PUBLIC = {
    name: thing
    for module in map(importlib.import_module, MODULES)
    for name, thing in ((name, getattr(module, name)) for name in module.__all__)
    if callable(thing) and not (inspect.isclass(thing) and issubclass(thing, Exception))
}
PUBLIC |= {
    name: getattr(importlib.import_module(f"pyro_naf.{module}"), name)
    for module, name in (
        ("rootfinding", "attach_gradient"),
        ("density.architectures", "build"),
        ("density.flow", "NormalizingFlow"),
        ("density.linear", "LULinear"),
        ("density.mixture", "AutoregressiveMixture"),
        ("density.recurrent", "RecurrentConditioner"),
    )
}

#: The abstract base has nothing to run, and published data have to be there first.
SILENT = {"Transformer", "load"}

#: Like ``(..., D)``, or a tensor with one axis, (N,).
SHAPE = re.compile(r"``\((\.\.\.|\w+)?(, [\w.* /+]+)*,?\)``|\(\w+,\)")

LINK = re.compile(r":(?:class|func|meth|mod):`[~.]*(?:[\w.]*\.)?(\w+)`")

named = pytest.mark.parametrize("name", sorted(PUBLIC))


def public_methods(thing: Any) -> dict[str, Any]:
    """The methods that a class defines itself, and those that make it callable."""
    if not inspect.isclass(thing):
        return {}
    return {
        name: value
        for name, value in vars(thing).items()
        if inspect.isfunction(value) and (not name.startswith("_") or name == "__call__")
    }


def takes_tensors(thing: Any) -> bool:
    functions = [thing, *public_methods(thing).values()]
    annotations = [
        str(parameter.annotation)
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
    ]
    return any("Tensor" in annotation for annotation in annotations)


def says_shapes(name: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether shapes stand in its docstrings or in one that they link to."""
    thing = PUBLIC.get(name)
    if thing is None or name in seen:
        return False
    docs = [inspect.getdoc(f) or "" for f in (thing, *public_methods(thing).values())]
    text = "\n".join(docs)
    return bool(SHAPE.search(text)) or any(
        says_shapes(link, seen | {name}) for link in LINK.findall(text)
    )


def documented_parameters(thing: Any) -> set[str]:
    return set(re.findall(r":param (\w+):", inspect.getdoc(thing) or ""))


@named
def test_docstring_says_in_a_sentence_what_it_is(name: str) -> None:
    first = (inspect.getdoc(PUBLIC[name]) or "").split("\n\n")[0]
    assert len(first) > 20 and first.rstrip().endswith((".", ":", "`"))


@named
def test_docstring_has_an_example_that_doctest_runs(name: str) -> None:
    thing = PUBLIC[name]
    found = doctest.DocTestFinder(recurse=False).find(thing, name)
    examples = [example for test in found for example in test.examples]
    # A result is what the example of the function that returns it shows.
    assert len(examples) > 0 or name in SILENT or dataclasses.is_dataclass(thing)
    # pytest collects the modules of the package, not the names that they pass on.
    assert thing.__module__.startswith("pyro_naf.")


@named
def test_docstring_says_the_shapes_of_tensors(name: str) -> None:
    assert not takes_tensors(PUBLIC[name]) or says_shapes(name)


@named
def test_docstring_knows_only_parameters_that_there_are(name: str) -> None:
    thing = PUBLIC[name]
    parameters = {n.lstrip("*") for n in inspect.signature(thing).parameters}
    assert documented_parameters(thing) <= parameters


@named
def test_public_methods_have_docstrings(name: str) -> None:
    for method, function in public_methods(PUBLIC[name]).items():
        if method in ("forward", "extra_repr", "__call__"):  # torch's, or the class's own
            continue
        assert inspect.getdoc(function), f"{name}.{method}"


def test_the_rules_see_what_is_missing() -> None:
    assert SHAPE.search("returns ``(..., D)``") and SHAPE.search("x ``(n, 2)``")
    assert SHAPE.search("all of ``(...)``") and SHAPE.search("of length (N,)")
    assert not SHAPE.search("calls ``f(x)``, (see there)")
    assert LINK.findall("as in :class:`~pyro_naf.transformers.Affine`, :func:`f`") == [
        "Affine",
        "f",
    ]
