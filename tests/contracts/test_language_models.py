"""The contract of ``LanguageModel``: the reference sampler, the engine and the HTTP client answer alike.

All three hold the same tiny random weights, plain and in 8 bits; the client talks to a real server over the engine.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from danlu.client import Client, RemoteModel
from danlu.compress.quantize import QuantizeConfig, quantize
from danlu.core.errors import RequestError
from danlu.core.records import Completion, GenerateOptions, LanguageModel, Message, Prompt
from danlu.models.load import load_model
from danlu.models.loaded import LoadedModel
from danlu.models.model import Model
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.engine import Engine
from danlu.serve.http.config import HttpConfig
from danlu.serve.http.server import Server, reserve_port
from tests.tiny import shop_rows

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(30)]

KINDS = ("reference", "engine", "remote")
SYSTEM: Message = {"role": "system", "content": "Be brief. 简短一点。"}
PROMPTS: list[Prompt] = [
    *("Once", "The navy silk dress has", "丹炉 writes ", "<|im_end|> typed by a user"),
    *([{"role": "user", "content": str(row["Title"])}] for row in shop_rows(5)),
    [SYSTEM, {"role": "user", "content": "蓝色棉裙 🙂"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]
OPTIONS = [
    GenerateOptions(max_tokens=40),
    GenerateOptions(max_tokens=40, stop=("e", "tail")),
    GenerateOptions(max_tokens=30, temperature=0.8, top_p=0.9, top_k=40, seed=11),
]


@contextmanager
def served(engine: Engine) -> Iterator[RemoteModel]:
    """A client of a server over ``engine`` on a free port."""
    urls: list[str] = []
    is_up = threading.Event()
    server = Server(engine, HttpConfig(port=0, drain_s=1.0), lambda url: (urls.append(url), is_up.set())[0])
    thread = threading.Thread(target=server.run_on, args=(reserve_port("127.0.0.1", 0),))
    thread.start()
    assert is_up.wait(10)
    try:
        with RemoteModel(Client(urls[0]), concurrency=6) as remote:
            yield remote
    finally:
        server.ask_to_stop()
        thread.join(10)


@pytest.fixture(scope="module", params=["plain", "int8"])
def model(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Model:
    folder = tiny_folder
    if request.param == "int8":
        folder = tmp_path_factory.mktemp("int8") / "tiny-llama"
        quantize(tiny_folder, folder, QuantizeConfig())
    return load_model(folder, precision="fp32")


@pytest.fixture(scope="module")
def all_kinds(model: Model) -> Iterator[dict[str, LanguageModel]]:
    engine = Engine({"tiny-llama": model}, EngineConfig(max_rows=4, cache_tokens=4096, threads=1))
    with served(engine) as remote:
        yield {"reference": LoadedModel(model), "engine": engine, "remote": remote}


@pytest.fixture(params=KINDS)
def each(request: pytest.FixtureRequest, all_kinds: dict[str, LanguageModel]) -> LanguageModel:
    return all_kinds[request.param]


def plain(answers: Sequence[Completion]) -> list[tuple[str, str, int, int]]:
    """What every kind must agree on: the HTTP API does not carry token ids."""
    return [(a.text, a.finish_reason, a.usage.prompt_tokens, a.usage.completion_tokens) for a in answers]


@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "stop", "seeded"])
def test_texts_finish_reasons_and_usage_are_those_of_the_reference(
    options: GenerateOptions, each: LanguageModel, all_kinds: dict[str, LanguageModel]
) -> None:
    assert plain(each.generate(PROMPTS, options)) == plain(all_kinds["reference"].generate(PROMPTS, options))


def test_a_prompt_is_answered_alone_as_among_others(each: LanguageModel) -> None:
    together = each.generate(PROMPTS, OPTIONS[0])
    assert plain([each.generate([prompt], OPTIONS[0])[0] for prompt in PROMPTS]) == plain(together)


@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "stop", "seeded"])
def test_the_pieces_of_a_stream_join_to_the_answer(options: GenerateOptions, each: LanguageModel) -> None:
    for prompt in PROMPTS[::3]:
        answer = each.generate([prompt], options)[0]
        *pieces, last = each.stream(prompt, options)
        assert "".join(piece.text for piece in [*pieces, last]) == answer.text
        assert all(piece.finish_reason is None for piece in pieces)
        assert (last.finish_reason, last.usage) == (answer.finish_reason, answer.usage)


def test_no_prompts_give_no_answers(each: LanguageModel) -> None:
    assert each.generate([]) == []


def test_progress_counts_every_answer(each: LanguageModel) -> None:
    done: list[int] = []
    each.generate(PROMPTS, OPTIONS[0], done.append)
    assert sum(done) == len(PROMPTS)


@pytest.mark.parametrize(
    ("prompt", "message", "code"),
    [
        ("", "The prompt is empty", None),
        ([], "is empty|length >= 1", None),
        ("word " * 1200, r"The prompt has \d+ tokens; the model's context is 1024", "context_length_exceeded"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_a_request_error(
    prompt: Prompt, message: str, code: str | None, each: LanguageModel
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        each.generate([PROMPTS[0], prompt], OPTIONS[0])
    assert (caught.value.status, caught.value.code) == (400, code)
    with pytest.raises(RequestError, match=message):
        list(each.stream(prompt, OPTIONS[0]))
    assert each.generate([PROMPTS[0]], OPTIONS[0])[0].text  # and the model goes on


def test_scores_are_those_of_the_reference(each: LanguageModel, all_kinds: dict[str, LanguageModel]) -> None:
    reference = all_kinds["reference"]
    answers = [answer.text for answer in reference.generate(PROMPTS, OPTIONS[0])]
    for texts in (answers, answers[1:] + answers[:1]):  # what it would have written, and what it would not
        assert each.score(PROMPTS, texts) == reference.score(PROMPTS, texts)


def test_every_kind_is_a_language_model(each: LanguageModel) -> None:
    assert isinstance(each, LanguageModel)
