"""Guides that compute with the parameters of Pyro's param store, whoever put them there."""

from __future__ import annotations

import pyro
from pyro.nn.module import PyroModule
from torch import nn

from .pyro_internals import full_name, store_decides


class InStepWithStore(PyroModule):
    """A PyroModule whose plain parameters and modules follow Pyro's param store.

    Reading a plain parameter or module from a PyroModule registers it, but gives the module's own
    weights where the store already has others, such as some loaded from a file or left by a guide
    of the same name. The optimiser moves the store's.
    """

    def _follow_store(self) -> None:
        """Exchange own parameters for those put into the store since the last call."""
        if not store_decides(self):
            return
        store = pyro.get_param_store()
        for name, own in list(self._parameters.items()):
            name_there = full_name(self, name)  # a PyroParam's is none of the store's
            if name_there in store and store[name_there] is not own:
                del self._parameters[name]
                setattr(self, name, own)  # takes the store's

    def _registered(self, name: str) -> nn.Module:
        """Return a module of this one's, its weights in step with the store.

        :raises ValueError: when the store holds a weight of another shape, naming it.
        """
        module: nn.Module = self._modules[name]
        if not any(weight.requires_grad for weight in module.parameters()):
            return module  # frozen, or without weights: nothing to register
        if store_decides(self) and not isinstance(module, PyroModule):
            _check_store(full_name(self, name), module)
            pyro.module(full_name(self, name), module, update_module_params=True)
            return module
        return getattr(self, name)


def _check_store(name: str, flow: nn.Module) -> None:
    store = pyro.get_param_store()
    for key, weight in flow.named_parameters():
        name_there = pyro.params.param_store.param_with_module_name(name, key)
        if name_there in store and store[name_there] is weight:
            return  # registered before, and all the others with it
        if name_there in store and store[name_there].shape != weight.shape:
            raise ValueError(
                f"the param store holds {name_there!r} with shape "
                f"{tuple(store[name_there].shape)}, this guide's has {tuple(weight.shape)}: it "
                "is left from another guide of the same name; call pyro.clear_param_store()"
            )
