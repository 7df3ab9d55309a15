"""Students made of their teacher, and who may learn from whom."""

from pathlib import Path

import pytest
import torch

from danlu.core.errors import ConfigError, ModelError
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.save import save_model
from danlu.text.bpe import CHATML
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import TextTokenizer
from danlu.train.student import check_vocabulary, even_layers, shorter
from tests.tiny import make_tokenizer

from ..models.peer import logits_of, our_logits, save_llama, some_ids
from .chats import fresh

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("count", "of", "expected"),
    [(6, 12, (1, 3, 5, 7, 9, 11)), (3, 4, (1, 2, 3)), (1, 5, (4,)), (4, 4, (0, 1, 2, 3)), (4, 2, (0, 0, 1, 1))],
)
def test_blocks_are_matched_evenly_and_the_last_to_the_last(count: int, of: int, expected: tuple[int, ...]) -> None:
    assert even_layers(count, of) == expected


def test_a_shorter_model_is_its_teacher_without_some_blocks(tmp_path: Path) -> None:
    peer = save_llama(tmp_path / "m", num_hidden_layers=4)
    student = shorter(load_model(tmp_path / "m", precision="fp32"), 2)
    peer.model.layers = torch.nn.ModuleList([peer.model.layers[i] for i in (1, 3)])
    for place, layer in enumerate(peer.model.layers):
        layer.self_attn.layer_idx = place  # pyright: ignore
    peer.config.num_hidden_layers = 2
    ids = some_ids(20)
    torch.testing.assert_close(our_logits(student, ids), logits_of(peer, ids), rtol=1e-4, atol=1e-4)
    assert student.theirs["num_hidden_layers"] == 2
    save_model(student, tmp_path / "s")
    again = load_model(tmp_path / "s", precision="fp32")
    torch.testing.assert_close(our_logits(again, ids), our_logits(student, ids), rtol=0, atol=0)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    save_llama(tmp_path / "m", num_hidden_layers=3)
    network = shorter(load_model(tmp_path / "m", precision="fp32"), 1).network
    assert network.get_parameter("head.linear.weight") is network.get_parameter("embedding.tokens.weight")


@pytest.mark.parametrize("keep", [0, 2, 5])
def test_a_student_that_is_no_shorter_is_refused(tiny_folder: Path, keep: int) -> None:
    model = fresh(tiny_folder)
    assert model.config.num_layers == 2
    with pytest.raises(ConfigError, match=rf"keep_layers is {keep}; the teacher has 2 blocks\. Use 1 to 1"):
        shorter(model, keep)


def test_quantised_weights_cannot_be_taken_over(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"The teacher has quantised weights: its blocks cannot be left out"):
        shorter(load_model(tiny_folder, scheme="int8"), 1)


def with_tokens(model: Model, *tokens: str) -> Model:
    """The same network with another tokenizer."""
    backend = make_tokenizer()
    backend.add_tokens(list(tokens))
    chat = ChatFormat(TextTokenizer(backend, end_tokens=["<|im_end|>"]), CHATML)
    return Model(model.network, model.theirs, model.architecture, dtype=torch.float32, chat=chat)


def test_a_vocabulary_must_be_shared(tiny_folder: Path, tmp_path: Path) -> None:
    model = fresh(tiny_folder)
    check_vocabulary(model, fresh(tiny_folder))
    with pytest.raises(ModelError, match=r"do not share a vocabulary: 1 of the teacher's \d+ tokens .*keep_layers"):
        check_vocabulary(with_tokens(model, "novel"), model)
    size = model.config.vocabulary_size
    save_llama(tmp_path / "wide", vocab_size=size + 8)
    wide = load_model(tmp_path / "wide", precision="fp32")
    check_vocabulary(wide, model)  # rows that no token has
    with pytest.raises(ModelError, match=rf"their tables have {size} and {size + 8} rows"):
        check_vocabulary(model, wide)
    bare = Model(wide.network, wide.theirs, wide.architecture, dtype=torch.float32)
    with pytest.raises(ModelError, match=rf"their tables have {size + 8} and {size} rows"):
        check_vocabulary(bare, model)
