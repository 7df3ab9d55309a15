"""One model and its lanes: what it can be asked for, how large its pools are, when it has something to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertModel

from danlu.core.errors import ModelError, RequestError, ResourceError
from danlu.core.records import GenerateOptions
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.request import Reading, ReadRequest, TokenizeRequest
from danlu.serve.engine.resident import Resident, load_resident
from danlu.serve.engine.spec import ModelSpec
from tests.models.case import save_peer
from tests.models.cases.seq2seq import CASES
from tests.models.encoders import save_encoder, save_sentence
from tests.models.families import FAMILIES
from tests.serve.engine.hearing import Desk, ask

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tiny_folder: Path, one_thread: None) -> Model:
    return load_model(tiny_folder, precision="fp32")


def family(name: str, folder: Path) -> Model:
    return load_model(save_peer(FAMILIES[name].make(), folder), precision="fp32", with_tokenizer=False)


def cache_of(resident: Resident) -> tuple[int, int, int]:
    """Pages, memory pages and slots."""
    assert resident.writer is not None
    cache = resident.writer._executor.cache
    return cache.num_pages, cache.num_memory_pages, cache.num_slots


def test_the_cache_holds_as_many_tokens_as_was_said(model: Model) -> None:
    resident = Resident(model, "m", EngineConfig(cache_tokens=1000, max_rows=4))
    assert cache_of(resident) == (16, 0, 1)
    assert resident.served.context_length == 1024  # 16 pages
    small = Resident(model, "m", EngineConfig(cache_tokens=100, max_rows=4))
    assert small.served.context_length == 128
    with pytest.raises(ResourceError, match=r"cache_tokens is \d+, which takes"):
        Resident(model, "m", EngineConfig(cache_tokens=10**12))


def test_a_recurrent_model_has_a_slot_for_every_row_and_no_pages_of_use(tmp_path: Path) -> None:
    resident = Resident(family("mamba2", tmp_path), "m", EngineConfig(cache_tokens=64, max_rows=5))
    assert cache_of(resident) == (1, 0, 5)
    assert resident.served.context_length == resident.model.config.context_length


def test_an_encoder_decoder_without_a_limit_takes_no_more_than_it_is_given(tmp_path: Path) -> None:
    model = family("t5", tmp_path)
    assert model.config.context_length > 100_000
    resident = Resident(model, "m", EngineConfig(cache_tokens=640, max_rows=5))
    assert cache_of(resident) == (10, 10, 1)
    short = Resident(family("bart", tmp_path / "bart"), "m", EngineConfig(cache_tokens=6400, max_rows=5))
    assert cache_of(short) == (100, 5, 1)  # five sources of 40 tokens


def test_a_model_that_can_do_nothing_is_refused(tmp_path: Path) -> None:
    CASES["bart-model"].make().save_pretrained(tmp_path)
    model = load_model(tmp_path, precision="fp32", with_tokenizer=False)
    with pytest.raises(ModelError, match="This model writes no text: it has no head"):
        Resident(model, "m", EngineConfig(cache_tokens=64))


def test_a_model_is_read_as_its_spec_says(tiny_folder: Path) -> None:
    spec = ModelSpec(name="m", path=str(tiny_folder), precision="bf16", scheme="int8")
    resident = load_resident(spec, "m", EngineConfig(cache_tokens=640))
    assert "bfloat16" in str(resident.model.activation_dtype)
    assert resident.served.name == "m"


def test_it_has_work_from_the_request_to_its_last_word(model: Model) -> None:
    desk = Desk(model)
    resident = desk.resident
    assert (resident.has_work, resident.ready_at(desk.now), resident.step(desk.now)) == (False, None, False)
    before = resident.last_used
    listener = desk.ask("a", GenerateOptions(max_tokens=2, ignore_eos=True))
    now = desk.now
    assert (resident.has_work, resident.ready_at(now)) == (True, now)
    assert resident.step(now)
    assert resident.last_used > before
    desk.run()
    assert listener.reason() == "length"
    assert not resident.has_work


def test_texts_wait_a_moment_for_others(tmp_path: Path) -> None:
    save_encoder(tmp_path, BertModel)
    save_sentence(tmp_path)
    desk = Desk(load_model(tmp_path, precision="fp32"), read_wait_ms=50.0)
    request = ReadRequest(model="model", task="embed", texts=("a dog",))
    first = desk.send(request)
    at = desk.resident.ready_at(desk.now)
    assert at is not None
    assert at > desk.now
    assert not desk.resident.step(desk.now)
    second = desk.send(request)
    desk.late_s = 1.0
    assert desk.resident.step(desk.now)
    assert isinstance(first.last(), Reading)
    assert isinstance(second.last(), Reading)
    with pytest.raises(RequestError, match=r"'model' writes no text\. It can: embed, score\."):
        desk.send(ask("a"))
    with pytest.raises(RequestError, match=r"'model' cannot tag\."):
        desk.send(ReadRequest(model="model", task="tag", texts=("a",)))


def test_a_text_is_tokenized_as_the_model_reads_it(tmp_path: Path, model: Model) -> None:
    save_encoder(tmp_path, BertModel)
    save_sentence(tmp_path)
    reader = Resident(load_model(tmp_path, precision="fp32"), "r", EngineConfig())
    framed = reader.tokenize(TokenizeRequest(model="r", prompt="a dog")).value
    bare = reader.tokenize(TokenizeRequest(model="r", prompt="a dog", add_special_tokens=False)).value
    assert framed["ids"][1:-1] == bare["ids"]
    assert framed["texts"][0] == "[CLS]"
    writer = Resident(model, "w", EngineConfig(cache_tokens=64))
    conversation = [{"role": "user", "content": "a"}]
    found = writer.tokenize(TokenizeRequest(model="w", prompt=conversation)).value  # pyright: ignore
    assert found["ids"] == model.chat.prompt_ids(conversation)  # pyright: ignore[reportArgumentType]
    assert found["texts"][0] == "<|im_start|>"
