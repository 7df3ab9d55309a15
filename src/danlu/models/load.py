"""Model folders and GGUF files in, model folders out. Weights are mapped, never unpickled; no code is ever run.

A folder is laid out as Hugging Face does: config.json, model.safetensors (or shards), tokenizer.json,
tokenizer_config.json with the chat template; danlu.json beside them says what config.json cannot (quantisation).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from danlu.core import plugins
from danlu.core.device import compute_dtype, pick_device
from danlu.core.errors import ModelError, nearest
from danlu.core.files import read_json, write_json
from danlu.models.archs import Architecture
from danlu.models.config import CoreConfig
from danlu.models.gguf import GGUFFile
from danlu.models.heads.lm import Decoder
from danlu.models.positions import Rotary
from danlu.models.quant import Int8Embedding, Int8Linear
from danlu.models.tensors import save_tensors
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import load_tokenizer, tokenizer_from_gguf

SCALE_SUFFIX = "_scale"
"""An int8 tensor ``x.weight`` has its row scales in ``x.weight_scale``."""
COLUMN_SCALE_SUFFIX = "_column_scale"
"""An int8 embedding also has its column scales, in ``x.weight_column_scale``."""

_ROPE_FACTORS = "rope_freqs.weight"
"""Where GGUF files of Llama 3.1 and later keep what config.json calls rope_scaling."""

_Read = Callable[[str], Tensor]


class Model:
    """A decoder, how it wants its conversations, and the family it came from."""

    def __init__(self, decoder: Decoder, chat: ChatFormat, architecture: Architecture, *, scheme: str | None) -> None:
        self.decoder = decoder
        self.chat = chat
        self.architecture = architecture
        self.scheme = scheme
        """None for plain weights, "int8" for quantised ones."""

    @property
    def config(self) -> CoreConfig:
        """The numbers of the stack."""
        return self.decoder.config

    @property
    def activation_dtype(self) -> torch.dtype:
        """Number type of hidden states."""
        return self.decoder.stack.norm.weight.dtype

    @property
    def precision(self) -> str:
        """Number type of the activations: fp32 or bf16."""
        return {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.activation_dtype]

    def num_parameters(self) -> int:
        """Weights of the model, tied ones counted once."""
        seen = {t.data_ptr(): t.numel() for n, t in self.decoder.state_dict().items() if not n.endswith("scale")}
        return sum(seen.values())


Precision = Literal["fp32", "bf16"]


def load_model(path: Path, *, precision: Precision | None = None, device: torch.device | None = None) -> Model:
    """A folder or a .gguf file as a Model.

    ``precision`` is the number type of plain weights; None picks bf16 where the machine is fast at it, else fp32.
    Raises ModelError when the files are not a model of a known family.
    """
    device = device or pick_device()
    dtype = None if precision is None else {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if path.is_dir():
        return _load_folder(path, dtype, device)
    if path.suffix == ".gguf" and path.is_file():
        return _load_gguf(path, dtype or compute_dtype(device), device)
    if not path.exists():
        raise ModelError(f"There is no model at {path}.", "Give a model folder, a .gguf file or an alias.")
    raise ModelError(f"{path} is neither a model folder nor a .gguf file.", "Give one of these.")


def _load_folder(folder: Path, dtype: torch.dtype | None, device: torch.device) -> Model:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelError(f"{folder} has no config.json.", "A model folder has config.json and *.safetensors.")
    theirs = read_json(config_path)
    if not isinstance(theirs, dict):
        raise ModelError(f"{config_path} is not an object.", "Copy the model's own config.json.")
    architecture = _architecture(theirs.get("model_type", "(none)"))
    config = architecture.read_config(theirs)
    extra = read_json(folder / "danlu.json") if (folder / "danlu.json").is_file() else {}
    scheme = extra.get("quantization", {}).get("scheme")
    if scheme not in (None, "int8"):
        raise ModelError(f"{folder}: quantisation scheme {scheme!r} is unknown.", "Known: int8.")
    if dtype is None:
        dtype = compute_dtype(device)
    decoder = _empty_decoder(config)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_open_safetensors(path)) for path in sorted(folder.glob("*.safetensors"))]
        if not files:
            raise ModelError(f"{folder} has no *.safetensors.", "Convert the weights to safetensors first.")
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)
        names = architecture.weight_names(config)
        _check_names(folder, set(where), names, scheme)
        _fill(decoder, names, lambda name: where[name].get_tensor(name), dtype, device, scheme)
    tokenizer_config = _read_optional(folder / "tokenizer_config.json")
    template = tokenizer_config.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    chat = ChatFormat(load_tokenizer(folder, tokenizer_config), template)
    return Model(decoder, chat, architecture, scheme=scheme)


def _load_gguf(path: Path, dtype: torch.dtype, device: torch.device) -> Model:
    file = GGUFFile(path)
    architecture = _architecture(str(file.metadata.get("general.architecture", "(none)")))
    theirs = architecture.config_from_gguf(file.metadata)
    theirs["tie_word_embeddings"] = architecture.gguf_name("lm_head.weight") not in file.names()
    config = architecture.read_config(theirs)
    names = architecture.weight_names(config)
    expected = {architecture.gguf_name(theirs): theirs for parts in names.values() for theirs in parts}
    _check_sets(path, file.names() - {_ROPE_FACTORS}, set(expected))
    if _ROPE_FACTORS in file.names() and (file.read(_ROPE_FACTORS) != 1.0).any():
        raise ModelError(f"{path} stretches its rotary positions ({_ROPE_FACTORS}).", "This is not supported so far.")

    def read(name: str) -> Tensor:
        return architecture.weight_from_gguf(name, file.read(architecture.gguf_name(name)), config)

    decoder = _empty_decoder(config)
    _fill(decoder, names, read, dtype, device, None)
    chat = ChatFormat(tokenizer_from_gguf(file.metadata), file.metadata.get("tokenizer.chat_template"))
    return Model(decoder, chat, architecture, scheme=None)


def _architecture(model_type: str) -> Architecture:
    known = plugins.names("models.archs")
    if model_type not in known:
        raise ModelError(f"Model family '{model_type}' is not supported.", nearest(model_type, known))
    return plugins.load("models.archs", model_type)


def _empty_decoder(config: CoreConfig) -> Decoder:
    """A decoder without memory for weights (they are put in one by one), but with its rotary table."""
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.stack.rotary = Rotary(config.head_width, config.context_length, config.rope_base)
    return decoder.eval().requires_grad_(False)


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}", "Fetch or make it again.") from error


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _check_names(folder: Path, found: set[str], names: Mapping[str, tuple[str, ...]], scheme: str | None) -> None:
    expected = {theirs for parts in names.values() for theirs in parts}
    if scheme == "int8":
        (embedding,) = names["embedding.weight"]
        expected |= {name + SCALE_SUFFIX for name in expected if "norm" not in name} | {embedding + COLUMN_SCALE_SUFFIX}
    _check_sets(folder, found, expected)


def _check_sets(where: Path, found: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})"
            for what, names in (("missing", missing), ("not of this family", extra))
            if names
        ]
        raise ModelError(f"{where}: tensors do not fit the config: {'; '.join(parts)}.", "Are all files of one model?")


def _fill(
    decoder: Decoder,
    names: Mapping[str, tuple[str, ...]],
    read: _Read,
    dtype: torch.dtype,
    device: torch.device,
    scheme: str | None,
) -> None:
    """Put every weight in place, one at a time; shapes are checked against the empty decoder."""
    shapes = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    for ours, theirs in names.items():
        weight = _stack(read, theirs)
        if weight.shape != shapes[ours]:
            raise ModelError(
                f"Tensor {' + '.join(theirs)} has shape {tuple(weight.shape)}, the config says {tuple(shapes[ours])}.",
                "Are config.json and the weights of one model?",
            )
        owner, _, attribute = ours.rpartition(".")
        if scheme == "int8" and weight.dtype == torch.int8:
            weight, scale = weight.to(device), _stack(read, [name + SCALE_SUFFIX for name in theirs]).to(device)
            if owner == "embedding":
                columns = read(theirs[0] + COLUMN_SCALE_SUFFIX).to(device)
                decoder.embedding = Int8Embedding(weight, scale, columns, dtype)  # pyright: ignore[reportAttributeAccessIssue]
            else:
                set_layer(decoder, owner, Int8Linear(weight, scale))
        else:
            parameter = nn.Parameter(weight.to(device=device, dtype=dtype), requires_grad=False)
            setattr(decoder.get_submodule(owner), attribute, parameter)
    if decoder.config.tied_head:
        tie_head(decoder)


def _stack(read: _Read, names: tuple[str, ...] | list[str]) -> Tensor:
    parts = [read(name) for name in names]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def set_layer(decoder: Decoder, name: str, layer: nn.Module) -> None:
    """Replace one layer of a decoder by its dotted name."""
    parent, _, attribute = name.rpartition(".")
    setattr(decoder.get_submodule(parent) if parent else decoder, attribute, layer)


def tie_head(decoder: Decoder) -> None:
    """Make the head read the embedding's own weights."""
    embedding = decoder.embedding
    if isinstance(embedding, Int8Embedding):
        decoder.head = Int8Linear(embedding.weight, embedding.scale)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        decoder.head.weight = embedding.weight


def part_rows(name: str, config: CoreConfig) -> tuple[int, ...]:
    """Rows of each part of a fused linear of ours (by its name); one number for a plain one means 'all of it'."""
    if name.endswith("qkv.weight"):
        q, kv = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        return (q, kv, kv)
    if name.endswith("gate_up.weight"):
        return (config.feedforward_width, config.feedforward_width)
    return (-1,)


def _split(name: str, weight: Tensor, config: CoreConfig) -> tuple[Tensor, ...]:
    rows = part_rows(name, config)
    return (weight,) if rows == (-1,) else weight.split(list(rows))


def save_model(model: Model, folder: Path, notes: Mapping[str, Any] | None = None) -> int:
    """Write a model folder; returns the bytes of its weights file. ``notes`` go into danlu.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model.decoder.state_dict()
    tensors: dict[str, Tensor] = {}
    for ours, theirs in model.architecture.weight_names(model.config).items():
        for name, part in zip(theirs, _split(ours, state[ours], model.config), strict=True):
            tensors[name] = part.contiguous().cpu()
        scale = state.get(ours.removesuffix("weight") + "scale")
        if scale is not None:
            for name, part in zip(theirs, _split(ours, scale, model.config), strict=True):
                tensors[name + SCALE_SUFFIX] = part.contiguous().cpu()
        if ours == "embedding.weight" and "embedding.column_scale" in state:
            tensors[theirs[0] + COLUMN_SCALE_SUFFIX] = state["embedding.column_scale"].cpu()
    weights = folder / "model.safetensors"
    save_tensors(tensors, weights)
    config = model.architecture.write_config(model.config)
    config["torch_dtype"] = str(next(t.dtype for n, t in tensors.items() if "norm" in n)).removeprefix("torch.")
    tokenizer = model.chat.tokenizer
    ends = sorted(tokenizer.end_ids)
    special = {"bos_token_id": tokenizer.begin_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    config |= special
    quantization = {"quantization": {"scheme": model.scheme, "granularity": "row"}} if model.scheme else {}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", special)
    write_json(folder / "danlu.json", {"format": 1, **quantization, **(notes or {})})
    _save_tokenizer(model.chat, folder)
    return weights.stat().st_size


def _save_tokenizer(chat: ChatFormat, folder: Path) -> None:
    tokenizer = chat.tokenizer
    tokenizer.save(folder)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if tokenizer.end_tokens:
        config["eos_token"] = tokenizer.end_tokens[0]
    if tokenizer.begin_id is not None:
        config["bos_token"] = tokenizer.backend.id_to_token(tokenizer.begin_id)
    if chat.source is not None:
        config["chat_template"] = chat.source
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
