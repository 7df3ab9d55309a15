"""What a request to write becomes before it may queue. Refusals are in test_engine.py, where callers hear them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import RequestError
from danlu.core.records import GenerateOptions, Message
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.serve.engine.answer import Answer
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.pages import PagePool
from danlu.serve.engine.prepare import Adapter, Prepared, Preparer
from danlu.serve.engine.request import Grammar, WriteRequest
from danlu.serve.engine.scheduler import Scheduler
from danlu.serve.engine.ticket import EngineTicket
from tests.models.cases.recurrent import CASES as RECURRENT
from tests.models.cases.seq2seq import CASES
from tests.serve.engine.hearing import ask

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = EngineConfig(max_rows=8, step_tokens=64)


@pytest.fixture(scope="module")
def model(tiny_folder: Path, one_thread: None) -> Model:
    return load_model(tiny_folder, precision="fp32")


def prepared(model: Model, request: WriteRequest, pages: int = 16, memory_pages: int = 4, **more: Any) -> Prepared:
    memory = PagePool(memory_pages) if model.config.encoder is not None else None
    scheduler = Scheduler(CONFIG, PagePool(pages), memory_pool=memory)
    ticket = EngineTicket(request.caller, 60.0, print, lambda: None)
    return Preparer(model, scheduler, CONFIG).prepare(request, ticket, **more)


def answer_of(found: Prepared) -> Answer:
    return found.row.request


def test_a_row_holds_the_prompt_its_caller_and_its_limits(model: Model) -> None:
    conversation: list[Message] = [{"role": "user", "content": "a silk dress"}]
    request = ask(conversation, GenerateOptions(max_tokens=7, n=3), tenant="t", priority=2, timeout_s=5.0)
    found = prepared(model, request)
    row = found.row
    assert row.ids == model.chat.prompt_ids(conversation)
    assert (row.max_tokens, row.num_answers, row.tenant, row.priority) == (len(row.ids) + 7, 3, "t", 2)
    assert row.deadline == found.asked.ticket.deadline
    assert (found.asked.num_left, found.asked.beams, found.asked.prompt_logprobs) == (3, None, None)
    assert answer_of(found).constraint is None
    assert row.reads_cache


def test_token_ids_are_a_prompt_as_they_stand(model: Model) -> None:
    assert prepared(model, ask([5, 5, 6])).row.ids == [5, 5, 6]


def test_prompts_share_pages_only_within_tenant_salt_and_adapter_version(model: Model) -> None:
    same = [prepared(model, ask("a", tenant="t", cache_salt="s")).row.salt for _ in range(2)]
    salts = {
        prepared(model, ask("a", tenant=tenant, cache_salt=salt), adapter=Adapter(name, 0, version)).row.salt
        for tenant in ("t", "u", "")
        for salt in ("", "s")
        for name, version in (("", 0), ("one", 1), ("one", 2), ("two", 1))
    }
    assert same[0] == same[1]
    assert len(salts) == 24


def test_who_asks_for_the_prompts_log_probabilities_reads_all_of_it(model: Model) -> None:
    found = prepared(model, ask("the silk", prompt_logprobs=0))
    assert not found.row.reads_cache
    assert found.asked.prompt_logprobs == [None]


def test_an_answer_is_no_longer_than_the_cache(model: Model) -> None:
    found = prepared(model, ask([5] * 100, GenerateOptions(max_tokens=10_000, min_tokens=200)), pages=3)
    assert found.row.max_tokens == 192
    assert answer_of(found).writing.limit == 92
    assert answer_of(found).writing.options.min_tokens == 92
    with pytest.raises(
        RequestError, match=r"takes up to 193 tokens of the key/value cache, more than this server has"
    ) as e:
        prepared(model, ask([5] * 192), pages=3)
    assert (e.value.status, e.value.code) == (400, "context_length_exceeded")


def test_beams_must_fit_to_their_end(model: Model) -> None:
    options = GenerateOptions(max_tokens=100, num_beams=4)
    found = prepared(model, ask([5] * 10, options), pages=16)
    assert found.asked.beams is not None
    assert found.row.num_answers == 4
    with pytest.raises(RequestError, match="more than this server has"):
        prepared(model, ask([5] * 10, options), pages=8)


def test_a_source_is_read_by_the_encoder_and_shares_no_pages(tmp_path: Path) -> None:
    CASES["bart"].make().save_pretrained(tmp_path)
    model = load_model(tmp_path, precision="fp32", with_tokenizer=False)
    row = prepared(model, ask([5, 6, 7], GenerateOptions(max_tokens=5))).row
    assert (row.ids, row.memory_tokens, row.salt) == ([model.generation.start_id], 3, None)
    assert row.max_tokens == 6
    with pytest.raises(RequestError, match="more than this server has"):
        prepared(model, ask([5] * 30, GenerateOptions(max_tokens=5)), memory_pages=0)


def test_guesses_are_refused_where_tokens_cannot_be_taken_back(tmp_path: Path) -> None:
    RECURRENT["mamba2"].make().save_pretrained(tmp_path)
    model = load_model(tmp_path, precision="fp32", with_tokenizer=False)
    with pytest.raises(RequestError, match=r"lookup_tokens is 3, and this model has recurrent layers") as error:
        prepared(model, ask([5, 6], GenerateOptions(lookup_tokens=3)))
    assert (error.value.status, error.value.param) == (400, "lookup_tokens")
    assert prepared(model, ask([5, 6], GenerateOptions())).row.ids == [5, 6]


def test_a_grammar_is_compiled_before_the_request_may_queue(model: Model) -> None:
    found = prepared(model, ask("a", grammar=Grammar(kind="choice", text='["x"]')))
    assert answer_of(found).constraint is not None
    with pytest.raises(RequestError, match=r"(?i)json") as error:
        prepared(model, ask("a", grammar=Grammar(kind="json_schema", text="{")))
    assert error.value.status == 400
