"""Where a student comes from: a teacher with some of its blocks left out, or a model with the teacher's vocabulary.

Knows no loss and no data.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from danlu.core.errors import ConfigError, ModelError
from danlu.models.checkpoint import core_config
from danlu.models.load import empty_network
from danlu.models.model import Model
from danlu.models.network import EncoderDecoder

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
"""What families call their number of blocks."""
_BLOCK = re.compile(r"^stack\.blocks\.(\d+)\.")


def even_layers(count: int, of: int) -> tuple[int, ...]:
    """Blocks of a stack of ``of`` that belong to ``count`` of another, evenly: the last to the last."""
    return tuple(-(-(number * of) // count) - 1 for number in range(1, count + 1))


def shorter(model: Model, keep_layers: int) -> Model:
    """The same model with ``keep_layers`` of its blocks, taken evenly, the last always (Sanh et al. 2019, section 3).

    Shares the weights with ``model``, which is done with. Raises ConfigError for a number that makes it no shorter,
    ModelError for models whose blocks cannot be left out.
    """
    network, depth = model.network, model.config.num_layers
    if not 0 < keep_layers < depth:
        raise ConfigError(f"keep_layers is {keep_layers}; the teacher has {depth} blocks.", f"Use 1 to {depth - 1}.")
    if isinstance(network, EncoderDecoder) or model.scheme is not None:
        kind = "two stacks" if model.scheme is None else "quantised weights"
        raise ModelError(f"The teacher has {kind}: its blocks cannot be left out.", "Give a student of its own.")
    kept = even_layers(keep_layers, depth)
    theirs = _shortened(model.theirs, depth, kept)
    config = core_config(model.architecture, theirs)
    if [config.stack.layers[i] for i in range(config.num_layers)] != [model.stack_config.layers[i] for i in kept]:
        raise ModelError(
            f"The blocks of a '{model.architecture.model_type}' differ by their place, so they cannot be left out.",
            "Give a student of its own.",
        )
    made = empty_network(config)
    made.load_state_dict(_weights(network.state_dict(), kept), assign=True)
    made.tie()
    chat = model.chat if model.has_tokenizer else None
    student = Model(made, theirs, model.architecture, dtype=model.activation_dtype, chat=chat)
    student.generation, student.licence = model.generation, model.licence
    return student


def check_vocabulary(teacher: Model, student: Model) -> None:
    """Raise ModelError unless both mean the same by an id. A teacher's table may have more rows, which nobody uses."""
    if teacher.has_tokenizer and student.has_tokenizer:
        theirs, mine = (one.chat.tokenizer.backend.get_vocab() for one in (teacher, student))
        if theirs != mine:
            different = sum(mine.get(token) != index for token, index in theirs.items())
            raise ModelError(
                f"Teacher and student do not share a vocabulary: {different} of the teacher's {len(theirs)} tokens "
                f"have another id or none among the student's {len(mine)}.",
                "Take a student with the teacher's tokenizer, or make one with keep_layers.",
            )
    sizes = teacher.config.vocabulary_size, student.config.vocabulary_size
    if sizes[0] < sizes[1] or (sizes[0] != sizes[1] and not (teacher.has_tokenizer and student.has_tokenizer)):
        raise ModelError(
            f"Teacher and student do not share a vocabulary: their tables have {sizes[0]} and {sizes[1]} rows.",
            "Take a student with the teacher's tokenizer, or make one with keep_layers.",
        )


def _shortened(theirs: dict[str, Any], depth: int, kept: tuple[int, ...]) -> dict[str, Any]:
    """config.json for the kept blocks; lists with an entry a block are shortened too."""
    short = {
        key: [value[i] for i in kept] if isinstance(value, list) and len(value) == depth else value
        for key, value in theirs.items()
    }
    counts = [key for key in _COUNTS if theirs.get(key) == depth]
    if not counts:
        raise ModelError("The teacher's config.json does not say how many blocks it has.", "Give a student of its own.")
    return {**short, **dict.fromkeys(counts, len(kept))}


def _weights(state: dict[str, Tensor], kept: tuple[int, ...]) -> dict[str, Tensor]:
    """The state of the kept blocks under their new numbers, and all that is in no block."""
    places = {old: new for new, old in enumerate(kept)}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _BLOCK.match(name)
        if block is None:
            found[name] = tensor
        elif int(block[1]) in places:
            found[f"stack.blocks.{places[int(block[1])]}.{name[block.end() :]}"] = tensor
    return found
