"""The model and the data that a command line names."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import inspect
import operator
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch

from pyro_naf.cli.data import load_data
from pyro_naf.cli.report import first_four
from pyro_naf.examples import eight_schools
from pyro_naf.support.command_line import CommandError, describe


@dataclass
class Problem:
    """A model with its data bound to it, and what is known of its posterior."""

    name: str
    model: Callable[[], object]
    reference: Mapping[str, eight_schools.Summary] = field(default_factory=dict)
    panels: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = first_four


def load_problem(options: argparse.Namespace, dtype: torch.dtype) -> Problem:
    """Load the model that was asked for, with its data; by default the centred eight schools."""
    if options.model is None:
        if options.data is not None:
            raise CommandError("--data needs a model of your own: pyro-naf refine module:function")
        return Problem(
            "centred eight schools",
            eight_schools.model,
            eight_schools.REFERENCE,
            eight_schools.funnel,
        )
    model = import_model(options.model)
    data = load_data(options.data, model, dtype) if options.data is not None else {}
    try:
        inspect.signature(model).bind(**data)
    except TypeError as error:
        raise CommandError(f"{options.model} does not fit its data: {error}") from None
    except ValueError:
        pass  # a callable that has no signature to be found
    # Bound, so that no argument of the model can be mistaken for an option of a guide.
    return Problem(options.model, functools.partial(model, **data))


def import_model(spec: str) -> Callable[..., object]:
    """Import the function that ``module:function`` or ``file.py:function`` names."""
    name, _, attribute = spec.rpartition(":")
    if not name or not attribute:
        raise CommandError(f"name the model as module:function or file.py:function, not {spec!r}")
    try:
        module = _import_file(name) if name.endswith(".py") else _import_module(name)
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        raise CommandError(f"cannot import {name!r}: {describe(error)}") from None
    try:
        model = operator.attrgetter(attribute)(module)
    except AttributeError:
        where = getattr(module, "__file__", None) or "built in"
        raise CommandError(f"module {name!r} ({where}) has no {attribute!r}") from None
    if not callable(model):
        raise CommandError(f"{spec} is not a function but {type(model).__name__}")
    return model


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CommandError(f"no module named {error.name!r} here or among Python's") from None
        raise


def _import_file(path: str) -> ModuleType:
    """Import the module that a file holds; what lies beside it can be imported there."""
    if not os.path.isfile(path):
        raise CommandError(f"there is no file {path}")
    name = os.path.basename(path)[:-3]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
