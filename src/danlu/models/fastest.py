"""What runs a model fastest on this machine: an executor, or a reader of whole rows."""

from __future__ import annotations

import torch

from danlu.models.executor import Executor, TorchExecutor
from danlu.models.model import Model
from danlu.models.native.executor import native_executor
from danlu.models.native.readers import own_tower
from danlu.models.network import EncoderDecoder, Network
from danlu.models.packed import pack_weights
from danlu.models.paged import PagedCache


def make_executor(
    model: Model, cache: PagedCache, *, num_threads: int | None = None, owns_network: bool = False
) -> Executor:
    """The kernels in C where they know the model and its weights stay as they are (``load_model(is_packed=True)``),
    else torch. ``num_threads`` is for the kernels; None for as many as torch uses.

    With ``owns_network`` the network may be changed for it: nobody else runs it, and its weights stay as they are.
    """
    if (model.is_packed or owns_network) and cache.device.type == "cpu":
        threads = num_threads or torch.get_num_threads()
        native = native_executor(model, cache, num_threads=threads, owns_network=owns_network)
        if native is not None:
            return native
    if owns_network:
        pack_weights(model.network)
    return TorchExecutor(model, cache)


def own_reader(model: Model) -> bool:
    """Change a network that only this caller has, so that rows are read fastest (models/encode.py); whether the kernels
    in C do it, with threads of their own. Its weights must stay as they are."""
    network: object = model.network  # a pair of networks is none
    is_native = (
        model.device.type == "cpu"
        and isinstance(network, Network)
        and not isinstance(network, EncoderDecoder)
        and own_tower(network, model.activation_dtype)
    )
    if not is_native:
        pack_weights(model.network)
    model.is_packed = is_native
    return is_native
