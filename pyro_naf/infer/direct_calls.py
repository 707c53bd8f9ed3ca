"""A captured graph whose operations are called as torch's own Python functions.

A graph of ``make_fx`` calls ``torch.ops.aten.mul.Tensor``. ``torch.mul`` reads its arguments in
two thirds of the time, and of small tensors little else is to be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import BuiltinFunctionType

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

#: Operators by the function that does the same under another name.
_RENAMED = {"view": torch.reshape}


def with_direct_calls(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return a copy of the graph for calls; to be compiled, the graph itself is needed.

    :param inputs: an example of each of its inputs. Where they fail, the graph stays as it is.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph = make_fx(lambda x: x.exp() * 2)(torch.zeros(3))
    >>> with_direct_calls(graph, [torch.zeros(3)])(torch.ones(3))
    tensor([5.4366, 5.4366, 5.4366])
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        function = _function(node.target) if node.op == "call_function" else None
        if function is not None and not any(_has_gaps(arg) for arg in node.args):
            node.target = function
    found = fx.GraphModule(module, graph)
    try:
        with torch.no_grad():
            found(*inputs)
    except (RuntimeError, TypeError, ValueError):
        return module
    return found


def _has_gaps(arg: object) -> bool:
    """Whether an argument is a list with None among its tensors, as that of ``index_put``."""
    return isinstance(arg, (list, tuple)) and None in arg


def _function(target: object) -> object:
    """Return the function of torch that calls this operator, made from the same schema."""
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return None
    name = target.overloadpacket.__name__
    function = _RENAMED.get(name) or getattr(torch, name, None)
    # Functions written in Python may take other arguments.
    return function if isinstance(function, BuiltinFunctionType) else None
