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

from pyro_naf.cli.report import first_four
from pyro_naf.examples import eight_schools
from pyro_naf.support.command_line import CommandError, describe, first_line, member, numpy_file


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
    data = load_data(options.data, dtype) if options.data is not None else {}
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


def load_data(path: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Load the arrays of a .npz file as tensors, floating-point ones in ``dtype``."""
    data: dict[str, torch.Tensor] = {}
    reading = None
    try:
        with numpy_file(path) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CommandError(f"{path} is not an .npz file but a single array")
            for reading in archive.files:
                array = member(archive, reading)
                data[reading] = _to_tensor(array, f"{reading!r} in {path}", dtype)
    except (OSError, CommandError):
        raise
    except Exception as error:  # what a reader of foreign bytes may raise is written nowhere
        if reading is None:
            raise CommandError(f"{path} is not a whole .npz file") from None
        raise CommandError(f"cannot read {reading!r} in {path}: {first_line(error)}") from None
    return data


def _to_tensor(array: object, what: str, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(array, np.ndarray) or (kind := array.dtype.kind) not in "fiub":
        named = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise CommandError(f"{what} must hold real numbers, integers or booleans, not {named}")
    if array.size == 0:
        raise CommandError(f"{what} is empty, of shape {array.shape}")
    if kind == "b":
        return torch.from_numpy(np.ascontiguousarray(array))
    if kind in "iu":
        if array.max() > np.iinfo(np.int64).max:
            raise CommandError(f"{what} holds integers beyond 64 bits")
        return torch.from_numpy(array.astype(np.int64))
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if nan or infinite:
        raise CommandError(f"{what} holds {nan} NaN and {infinite} infinite values")
    tensor = torch.from_numpy(array.astype(np.float64)).to(dtype)
    if not tensor.isfinite().all():
        raise CommandError(f"{what} holds values too large for {dtype}; try --dtype float64")
    return tensor
