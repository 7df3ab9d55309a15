"""Hidden words found again, against transformers."""

from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM, BertModel, FillMaskPipeline

from danlu.core.errors import ModelError, RequestError
from danlu.models.fill import fill_mask
from danlu.models.load import load_model
from danlu.models.model import Model
from tests.models.encoders import save_encoder, save_roberta

pytestmark = pytest.mark.usefixtures("one_thread")


def load(folder: Path) -> Model:
    return load_model(folder, precision="fp32")


def test_gaps_are_filled_as_the_pipeline_of_transformers_does(tmp_path: Path) -> None:
    peer, tokenizer = save_encoder(tmp_path, BertForMaskedLM)
    pipeline = FillMaskPipeline(model=peer, tokenizer=tokenizer, top_k=4)  # pyright: ignore[reportArgumentType]
    text = "The [MASK] sat on the [MASK]."
    found = fill_mask(load(tmp_path), text, top=4)
    expected = pipeline(text)
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.token_id for one in ours] == [one["token"] for one in theirs]  # pyright: ignore
        assert [one.probability for one in ours] == pytest.approx([one["score"] for one in theirs], abs=1e-5)  # pyright: ignore


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("text", ["the <mask> sat on the <mask>.", "<mask> cat", "the cat <mask>"])
def test_spaces_around_gaps_are_read_as_transformers_reads_them(tmp_path: Path, kind: str, text: str) -> None:
    peer, tokenizer = save_roberta(tmp_path, kind)
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = peer(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
    found = fill_mask(load(tmp_path), text, top=3)
    assert [[one.token_id for one in gap] for gap in found] == logits.topk(3).indices.tolist()


def test_a_text_without_a_gap_is_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertForMaskedLM)
    model = load(tmp_path)
    with pytest.raises(RequestError, match=r"The text has no \[MASK\]\. Write \[MASK\] where"):
        fill_mask(model, "the cat")
    with pytest.raises(RequestError, match="The text has 34 tokens, the model reads 24"):
        fill_mask(model, "[MASK]" + " cat" * 31)


def test_a_model_of_another_kind_fills_no_gaps(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertModel)
    with pytest.raises(ModelError, match=r"This model fills no gaps\. Use a …ForMaskedLM model"):
        fill_mask(load(tmp_path), "the [MASK]")
