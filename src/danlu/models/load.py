"""Models into memory: the tensors of a checkpoint, checked all at once and read one by one, become a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from danlu.core.device import compute_dtype, pick_device
from danlu.core.errors import ModelError
from danlu.core.memory import trim_memory
from danlu.models.archs import Architecture
from danlu.models.checkpoint import UNREADABLE, Checkpoint, Tensors, open_checkpoint, read_generation
from danlu.models.linear import rows_of_parts
from danlu.models.model import Model, Precision, set_layer
from danlu.models.network import ModelConfig, Network
from danlu.models.packed import pack_weights
from danlu.models.quant import can_quantize, int8_layer, quantize_rows
from danlu.models.weights import Weights

SCALE_SUFFIX = "_scale"
"""An int8 tensor ``x.weight`` has its row scales in ``x.weight_scale``."""
COLUMN_SCALE_SUFFIX = "_column_scale"
"""An int8 embedding also has its column scales, in ``x.weight_column_scale``."""

_TRIM_BYTES = 16 << 20
"""How much is read before memory that passed through is handed back."""
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}
"""What checkpoints of 2018 call the weights of a norm."""


def load_model(
    path: Path,
    *,
    precision: Precision | None = None,
    scheme: str | None = None,
    device: torch.device | None = None,
    with_tokenizer: bool = True,
    is_packed: bool = False,
) -> Model:
    """A folder or a .gguf file as a Model, ``with_tokenizer`` where it has one.

    ``precision`` is the number type of plain weights; None picks bf16 where the machine is fast at it, else fp32.
    ``scheme="int8"`` quantises linears and embeddings as they are read, so the plain model never stands in memory.
    ``is_packed`` lays weights out as the kernels read them: faster, for inference only.
    Raises ModelError when the files are not a model of a known family.
    """
    device = device or pick_device()
    dtype = _number_type(precision, device)
    if scheme not in (None, "int8"):
        raise ModelError(f"Quantisation scheme {scheme!r} is unknown.", "Known: int8.")
    checkpoint = open_checkpoint(path, with_tokenizer=with_tokenizer)
    network = empty_network(checkpoint.config)
    scheme = checkpoint.scheme or scheme
    unused = _fill(network, checkpoint, dtype, device, scheme)
    if is_packed:
        pack_weights(network)
    model = _model(checkpoint, network, dtype, scheme)
    model.unused, model.is_packed = unused, is_packed
    return model


def describe_model(path: Path, *, precision: Precision | None = None, scheme: str | None = None) -> Model:
    """What ``load_model`` gives, without its weights: for asking what it can and what it would take."""
    checkpoint = open_checkpoint(path)
    dtype = _number_type(precision, pick_device())
    return _model(checkpoint, empty_network(checkpoint.config), dtype, checkpoint.scheme or scheme)


def _number_type(precision: Precision | None, device: torch.device) -> torch.dtype:
    return compute_dtype(device) if precision is None else {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def _model(checkpoint: Checkpoint, network: Network, dtype: torch.dtype, scheme: str | None) -> Model:
    model = Model(
        network,
        checkpoint.theirs,
        checkpoint.architecture,
        dtype=dtype,
        chat=checkpoint.chat,
        scheme=scheme,
        generation=read_generation(checkpoint.path),
    )
    model.sentence, model.licence = checkpoint.sentence, checkpoint.licence
    return model


_Made = TypeVar("_Made", bound=nn.Module, covariant=True)


class Makes(Protocol[_Made]):
    """Any config of a whole model."""

    def make(self) -> _Made:
        """The model, weights not set."""
        ...


def empty_network(config: Makes[_Made]) -> _Made:
    """A network without memory for weights: they are put in one by one."""
    try:
        with torch.device("meta"):
            network = config.make()
    except (*UNREADABLE, RuntimeError) as error:  # sizes that overflow, shares above 1
        raise ModelError(
            f"The numbers of this config.json make no model: {str(error).partition(chr(10))[0]}.",
            "Copy the model's own config.json.",
        ) from error
    return network.eval().requires_grad_(False)


def checked_weights(checkpoint: Checkpoint) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """Shapes of the tensors that the model needs, as the family names them, all checked; and what reads one."""
    network = empty_network(checkpoint.config)
    found, _ = _check(network, checkpoint)
    shapes = _their_shapes(network, checkpoint.architecture.weights(checkpoint.config))

    def read(name: str) -> Tensor:
        return checkpoint.tensors.read(found[name]) if name in found else torch.zeros(shapes[name])

    return shapes, read


def _fill(
    network: Network, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, scheme: str | None
) -> tuple[str, ...]:  # fmt: skip
    """Put every weight in place, one at a time; returns tensors the head does not read.

    Names and shapes are all checked before the first is read.
    """
    where, wanted = checkpoint.path, checkpoint.architecture.weights(network.config)
    shapes = dict(network.state_dict(keep_vars=True))
    found, unused = _check(network, checkpoint)

    def read(name: str) -> Tensor:
        return checkpoint.tensors.read(found[name])

    passed_bytes = 0
    for ours, source in wanted.items():
        owner, _, attribute = ours.rpartition(".")
        layer = network.get_submodule(owner)
        shape = shapes[ours].shape
        weight = source.join(read, shape) if source.names[0] in found else torch.zeros(shape)
        passed_bytes += weight.nbytes
        if passed_bytes > _TRIM_BYTES:
            trim_memory()
            passed_bytes = 0
        stored = weight.dtype == torch.int8
        if stored or (scheme == "int8" and attribute == "weight" and can_quantize(layer)):
            columns: Tensor | None = None
            if stored:
                if missing := [name + SCALE_SUFFIX for name in source.names if name + SCALE_SUFFIX not in found]:
                    raise ModelError(f"{where} lacks {', '.join(missing)}.", "Quantise the model again.")
                scale = torch.cat([read(name + SCALE_SUFFIX) for name in source.names])
                scale = scale.reshape(*weight.shape[:-1], 1)
                if source.names[0] + COLUMN_SCALE_SUFFIX in found:
                    columns = read(source.names[0] + COLUMN_SCALE_SUFFIX).to(device)
            else:
                weight, scale = quantize_rows(weight)
            set_layer(network, owner, int8_layer(layer, weight.to(device), scale.to(device), dtype, columns))
        elif attribute in dict(layer.named_buffers(recurse=False)):
            kind = torch.float32 if weight.is_floating_point() else weight.dtype  # statistics keep their digits
            layer.register_buffer(attribute, weight.to(device=device, dtype=kind))
        else:
            parameter = nn.Parameter(weight.to(device=device, dtype=dtype), requires_grad=False)
            setattr(layer, attribute, parameter)
    network.tie()
    return unused


def _renamed(
    names: Iterable[str], wanted: Weights, architecture: Architecture, config: ModelConfig
) -> dict[str, str]:  # fmt: skip
    """Name as the family writes it → name in this file: bare checkpoints lack the prefix, old ones say gamma."""
    expected = {name for source in wanted.values() for name in source.names}
    known = expected | architecture.copies(config).keys()
    names = set(names)
    bare = architecture.prefix and not any(name.startswith(architecture.prefix) for name in names)
    found: dict[str, str] = {}
    for name in names:
        stem, _, last = name.rpartition(".")
        whole = f"{stem}.{_OLD_NAMES[last]}" if last in _OLD_NAMES and name not in expected else name
        if bare and whole not in expected and architecture.prefix + whole in known:
            whole = architecture.prefix + whole
        found[whole] = name
    for missing, other in architecture.stand_ins(config).items():
        if missing in expected and missing not in found and other in found:
            found[missing] = found[other]
    return found


def _check(network: Network, checkpoint: Checkpoint) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name as the family writes it → name in this file, and what is not read.

    Raises one error that lists what is missing, what is too much and what is misshapen.
    """
    where, architecture, tensors = checkpoint.path, checkpoint.architecture, checkpoint.tensors
    wanted = architecture.weights(network.config)
    found = _renamed(tensors.names(), wanted, architecture, network.config)
    expected = {name for source in wanted.values() for name in source.names}
    companions = {n for n in found if n.endswith((SCALE_SUFFIX, COLUMN_SCALE_SUFFIX))}
    copies = architecture.copies(network.config)
    extra = found.keys() - expected - companions - {name for name in copies if name in found}
    unused = {name for name in extra if any(re.fullmatch(pattern, name) for pattern in architecture.unused)}
    extra -= unused | {name for name in extra if any(re.fullmatch(pattern, name) for pattern in architecture.ignored)}
    misshapen = [
        f"{name} is {tensors.shape(found[name])}, the config says {shape}"
        for name, shape in _their_shapes(network, wanted).items()
        if name in found and tensors.shape(found[name]) != shape
    ]
    wrong = {
        "missing": sorted(expected - found.keys() - set(architecture.zeros)),
        "not of this family": sorted(extra),
        "of another shape": misshapen,
    }
    if any(wrong.values()):
        parts = [
            f"{len(names)} {what} ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})"
            for what, names in wrong.items()
            if names
        ]
        raise ModelError(f"{where}: tensors do not fit the config: {'; '.join(parts)}.", "Are all files of one model?")
    for copy, original in copies.items():
        if copy in found and original in found and not _equal(tensors, found[copy], found[original]):
            raise ModelError(
                f"{where}: {copy} differs from {original}, but the config says they are one.",
                "Set tie_word_embeddings to false in config.json if they are not.",
            )
    return found, tuple(sorted(unused))


def _equal(tensors: Tensors, first: str, second: str) -> bool:
    return tensors.shape(first) == tensors.shape(second) and torch.equal(tensors.read(first), tensors.read(second))


def _their_shapes(network: Network, wanted: Weights) -> dict[str, tuple[int, ...]]:
    """Shapes their tensors must have: ours, taken apart without memory."""
    state = network.state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, source in wanted.items():
        layer = network.get_submodule(ours.rpartition(".")[0])
        parts = rows_of_parts(layer) if len(source.names) > 1 else ()
        shapes |= {name: tuple(part.shape) for name, part in source.split(state[ours].to("meta"), parts).items()}
    return shapes
