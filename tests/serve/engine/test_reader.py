"""The single-pass lane: what it answers, in which order it reads, and who leaves a full queue."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel

from danlu.core.errors import DanluError, OverloadedError, RequestError
from danlu.core.files import write_json
from danlu.models import encode
from danlu.models.images import ImageConfig, ImageProcessor
from danlu.models.load import load_model
from danlu.models.model import Model
from danlu.models.rehead import NewClassifier, with_head
from danlu.models.vision import ImageModel
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.reader import ReadLane
from danlu.serve.engine.reading import ReadLimits
from danlu.serve.engine.request import Caller, Event, Reading, ReadRequest
from danlu.serve.engine.ticket import EngineTicket
from tests.models.case import Case, save_peer
from tests.models.cases.vision import CASES, CONVNETS
from tests.models.encoders import TEXTS, save_encoder, save_sentence
from tests.tiny import make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
NOW = 1000.0
PROCESSOR = ImageProcessor(ImageConfig(resize=(12, 12), mean=(0.5,) * 3, std=(0.5,) * 3), {})


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("sentences")
    save_encoder(folder, BertModel)
    save_sentence(folder)
    prompts = {"query": "the cat ", "passage": "a dog "}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return load_model(folder, precision="fp32")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("classes")
    save_encoder(folder, BertForSequenceClassification, id2label={0: "good", 1: "bad", 2: "so-so"})
    return load_model(folder, precision="fp32")


def encoder(folder: Path, peer: Any, **changes: Any) -> Model:
    save_encoder(folder, peer, **changes)
    return load_model(folder, precision="fp32")


class Heard:
    """A request in a lane and what it hears."""

    def __init__(self, lane: ReadLane, request: ReadRequest, at: float = NOW, lasts_s: float = 1e9) -> None:
        self.events: list[Event] = []
        self.ticket = EngineTicket(request.caller, 1.0, self.events.append, lambda: None)
        self.ticket.deadline = at + lasts_s
        lane.add(lane.prepare(request), self.ticket, at)

    @property
    def reading(self) -> Reading:
        assert len(self.events) == 1
        assert isinstance(self.events[0], Reading), self.events[0]
        return self.events[0]

    @property
    def error(self) -> DanluError:
        assert len(self.events) == 1
        assert isinstance(self.events[0], DanluError)
        return self.events[0]


def ask(task: Any, *texts: Any, tenant: str = "", priority: int = 0, **changes: Any) -> ReadRequest:
    caller = Caller(tenant=tenant, priority=priority)
    return ReadRequest(model="m", task=task, texts=texts, caller=caller, **changes)


def drain(lane: ReadLane, budget: int = 64) -> None:
    while lane.has_work:
        assert lane.step(NOW, budget) > 0


def answer(model: Model, request: ReadRequest, budget: int = 64, processor: ImageProcessor | None = None) -> Reading:
    lane = ReadLane(model, "m", processor=processor)
    heard = Heard(lane, request)
    drain(lane, budget)
    return heard.reading


def vectors(reading: Reading) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(reading.vectors, "<f4").reshape(-1, reading.width).copy())


# answers


@pytest.mark.parametrize("budget", [1, 11, 30, 4096])
def test_vectors_are_those_of_the_model_alone_whatever_they_are_read_with(sentences: Model, budget: int) -> None:
    lane = ReadLane(sentences, "m")
    together = Heard(lane, ask("embed", *TEXTS))
    alone = [Heard(lane, ask("embed", text)) for text in TEXTS[::-1]]
    drain(lane, budget)
    expected = encode.embed(sentences, TEXTS)
    torch.testing.assert_close(vectors(together.reading), expected, atol=1e-5, rtol=0)
    for heard, vector in zip(alone[::-1], expected, strict=True):
        torch.testing.assert_close(vectors(heard.reading)[0], vector, atol=1e-5, rtol=0)
    lengths = [len(ids) for ids, _ in encode.encode_texts(sentences, TEXTS)]
    assert together.reading.usage.prompt_tokens == sum(lengths)
    assert [heard.reading.usage.prompt_tokens for heard in alone[::-1]] == lengths


def test_token_ids_are_read_as_they_are(sentences: Model) -> None:
    ids, _ = encode.encode_texts(sentences, ["the dog met ann"])[0]
    found = vectors(answer(sentences, ask("embed", ids, "the dog met ann")))
    assert torch.equal(found[0], found[1])
    with pytest.raises(RequestError, match=r"Text 0 has the token id 99999\. Ids of this model are 0 to"):
        ReadLane(sentences, "m").prepare(ask("embed", [99999]))


def test_a_named_prompt_stands_before_each_text(sentences: Model) -> None:
    found = vectors(answer(sentences, ask("embed", "met ann", prompt="query")))
    assert torch.equal(found, encode.embed(sentences, ["the cat met ann"]))


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_labels_are_those_of_the_model_alone_for_texts_and_pairs(tmp_path: Path, kind: str) -> None:
    model = encoder(tmp_path, BertForSequenceClassification, num_labels=3, problem_type=kind)
    texts = [*TEXTS, ("the cat", "the dog met ann")]
    found = answer(model, ask("classify", *texts), budget=20).labels
    for ours, expected in zip(found, encode.classify(model, texts), strict=True):
        assert [label for label, _ in ours] == [one.label for one in expected]
        assert [share for _, share in ours] == pytest.approx([one.probability for one in expected], abs=1e-5)


def test_spans_are_those_of_the_model_alone(tmp_path: Path) -> None:
    tags = {"id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))}
    model = encoder(tmp_path, BertForTokenClassification, **tags)
    found = answer(model, ask("tag", *TEXTS), budget=20).spans
    assert sum(len(spans) for spans in found) > 3
    for ours, expected in zip(found, encode.tag(model, TEXTS), strict=True):
        assert [one[:3] for one in ours] == [(s.label, s.start, s.end) for s in expected]
        assert [one[3] for one in ours] == pytest.approx([s.score for s in expected], abs=1e-5)


@pytest.mark.parametrize("num_labels", [1, 2])
def test_a_cross_encoder_scores_pairs_by_its_one_label_or_the_second_of_two(tmp_path: Path, num_labels: int) -> None:
    model = encoder(tmp_path, BertForSequenceClassification, num_labels=num_labels)
    pairs = [("the cat", text) for text in TEXTS]
    found = answer(model, ask("score", *pairs), budget=40).scores
    assert found == pytest.approx(encode.rank(model, "the cat", TEXTS).tolist(), abs=1e-5)
    rows = encode.encode_texts(model, pairs)
    logits = torch.stack(encode.run_rows(model, rows))
    expected = logits.sigmoid()[:, 0] if num_labels == 1 else logits.softmax(-1)[:, 1]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_sentence_model_scores_by_cosine_with_each_text_read_once_and_each_side_with_its_prompt(
    sentences: Model,
) -> None:
    reading = answer(sentences, ask("score", *(("met ann", text) for text in (*TEXTS, TEXTS[0]))))
    query, documents = encode.embed(sentences, ["met ann"], prompt="query"), encode.embed(
        sentences, TEXTS, prompt="passage"
    )  # fmt: skip
    expected = (documents @ query[0]).tolist()
    assert reading.scores == pytest.approx([*expected, expected[0]], abs=1e-5)
    rows = [
        *encode.embed_rows(sentences, ["met ann"], prompt="query"),
        *encode.embed_rows(sentences, TEXTS, prompt="passage"),
    ]
    assert reading.usage.prompt_tokens == sum(len(ids) for ids, _ in rows)


# images


def image_file(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (15, 20)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def vision(name: str, folder: Path, **numbers: Any) -> Model:
    case = (CASES | CONVNETS)[name]
    return load_model(
        save_peer(
            Case(config=case.config, peer=case.peer, numbers={**case.numbers, **numbers}).make(), folder
        ),
        precision="fp32",
    )  # fmt: skip


def see(task: Any, *images: bytes) -> ReadRequest:
    return ReadRequest(model="m", task=task, images=images)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_images_get_the_labels_of_the_model_alone(tmp_path: Path, name: str) -> None:
    model = vision(name, tmp_path)
    images = [image_file(0), image_file(1, "JPEG"), image_file(2, "WEBP")]
    reading = answer(model, see("classify", *images), processor=PROCESSOR)
    for ours, expected in zip(
        reading.labels, ImageModel(model.network, PROCESSOR).classify(list(images)), strict=True
    ):  # fmt: skip
        assert dict(ours) == pytest.approx(expected, abs=1e-5)
        assert [label for label, _ in ours] == list(expected)
    assert reading.usage.prompt_tokens == 3 * (10 if name == "vit" else 1)


def test_a_pair_of_towers_embeds_images_and_texts_in_one_space(tmp_path: Path) -> None:
    text = {**CASES["siglip"].numbers["text_config"], "vocab_size": 420, "bos_token_id": 1, "eos_token_id": 2}
    model = vision("siglip", tmp_path, text_config=text)
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": "<|im_start|>"}
    write_json(tmp_path / "tokenizer_config.json", names)
    model = load_model(tmp_path, precision="fp32")
    peer = ImageModel(model.network, PROCESSOR, model.chat.tokenizer)
    texts, images = ["a cat", "a very long text that has more tokens than it reads", "dog"], [image_file(0)]
    lane = ReadLane(model, "m", processor=PROCESSOR)
    words, pixels = Heard(lane, ask("embed", *texts)), Heard(lane, see("embed", *images))
    scores = Heard(lane, ask("score", ("a cat", "dog")))
    drain(lane, 4096)
    expected = peer.embed_texts(texts)
    torch.testing.assert_close(vectors(words.reading), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors(pixels.reading), peer.embed(list(images)), atol=1e-5, rtol=0)
    assert scores.reading.scores == pytest.approx([float(expected[0] @ expected[2])], abs=1e-5)


def refused(lane: ReadLane, request: ReadRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        lane.prepare(request)
    return caught.value


def test_what_is_no_image_or_too_large_a_one_is_refused(tmp_path: Path) -> None:
    limits = ReadLimits(max_images=2, max_image_bytes=20_000, max_image_pixels=4000)
    lane = ReadLane(vision("vit", tmp_path), "m", None, PROCESSOR, limits)
    whole = image_file()
    assert "Image 1: 7 bytes is not an image. Known: JPEG, PNG, WEBP." in str(
        refused(lane, see("classify", whole, b"no clue"))
    )
    assert "is not an image" in str(refused(lane, see("classify", image_file(kind="GIF"))))
    cut = refused(lane, see("classify", whole[: len(whole) // 2]))
    assert (cut.status, cut.param) == (400, "input")
    assert "Image 0: The image cannot be read" in str(cut)
    bomb = io.BytesIO()
    Image.new("L", (100, 50)).save(bomb, "PNG")
    assert "too large an image: 100 × 50 pixels. Shrink it to 4,000" in str(
        refused(lane, see("classify", bomb.getvalue()))
    )
    many = refused(lane, see("classify", whole, whole, whole))
    assert (many.status, str(many)) == (413, "The request has 3 images. Send 2 or fewer at once.")
    big = refused(lane, see("classify", bytes(30_000)))
    assert (big.status, big.message) == (413, "The request has 30,000 bytes in image 0.")


def test_an_image_of_one_line_does_not_become_a_huge_one(tmp_path: Path) -> None:
    lane = ReadLane(vision("vit", tmp_path), "m", None, ImageProcessor(ImageConfig(resize=224), {}))
    line = io.BytesIO()
    Image.new("L", (20_000, 1)).save(line, "PNG")
    assert "20000 × 1 resized is too large an image: 4480000 × 224 pixels" in str(
        refused(lane, see("classify", line.getvalue()))
    )


# requests that are refused


def test_a_model_is_asked_only_what_it_can(sentences: Model, classifier: Model, tmp_path: Path) -> None:
    error = refused(ReadLane(sentences, "m"), ask("classify", "the cat"))
    assert str(error) == "'m' cannot classify. It can: embed, score."
    assert (error.status, error.code, error.param) == (400, "unsupported_task", "model")
    assert "'m' cannot score. It can: classify." in str(refused(ReadLane(classifier, "m"), ask("score", ("a", "b"))))
    assert "'m' takes no images" in str(refused(ReadLane(sentences, "m"), see("embed", image_file())))
    images = ReadLane(vision("vit", tmp_path), "m", None, PROCESSOR)
    assert "'m' reads images, no texts. Give images." in str(refused(images, ask("classify", "the cat")))


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ask("embed"), "The request has nothing to read"),
        (ReadRequest(model="m", task="embed", texts=("a",), images=(b"",)), "both texts and images"),
        (ask("embed", "a", prompt="poem"), "The model has no prompt 'poem'. Known: query, passage."),
        (ask("score", "a"), "Text 0 is no pair. Scoring reads pairs: a query and a document."),
        (ask("embed", "a", "the cat \ud800"), "Text 1 is no valid Unicode at character 8"),
        (ask("embed", []), "Text 0 is empty"),
        (ask("embed", "a", "cat " * 30, truncates=False), "Text 1 has 32 tokens, the model reads 10"),
        (ask("embed", *["a"] * 9), "The request has 9 texts. Send 8 or fewer at once."),
        (ask("embed", "a" * 2000), "The request has 2,000 characters. Send 1,000 or fewer at once."),
    ],
)
def test_what_cannot_be_read_is_refused(sentences: Model, request_: ReadRequest, says: str) -> None:
    lane = ReadLane(sentences, "m", limits=ReadLimits(max_texts=8, max_characters=1000))
    assert says in str(refused(lane, request_))


def test_a_text_too_long_says_so_by_its_code_or_is_cut(sentences: Model) -> None:
    error = refused(ReadLane(sentences, "m"), ask("embed", "cat " * 30, truncates=False))
    assert (error.status, error.code) == (400, "context_length_exceeded")
    cut = answer(sentences, ask("embed", "cat " * 30))
    assert torch.equal(vectors(cut), encode.embed(sentences, ["cat " * 8]))
    assert cut.usage.prompt_tokens == 10


def test_tags_and_prompts_need_plain_texts(tmp_path: Path) -> None:
    lane = ReadLane(encoder(tmp_path, BertForTokenClassification, num_labels=3), "m")
    assert "Text 0 is a pair. Tagging reads single texts." in str(refused(lane, ask("tag", ("a", "b"))))
    assert "Text 1 is a list of token ids" in str(refused(lane, ask("tag", "a", [5])))
    assert "The prompt 'query' is given to tag. Leave it out." in str(refused(lane, ask("tag", "a", prompt="query")))


# order


def test_a_thousand_texts_do_not_hold_up_one(sentences: Model) -> None:
    lane = ReadLane(sentences, "m", EngineConfig(max_waiting_tokens=1_000_000))
    many = Heard(lane, ask("embed", *["the cat sat on the mat"] * 1000))
    lane.step(NOW, 512)
    assert lane.status().running == 1
    one = Heard(lane, ask("embed", "the dog"))
    lane.step(NOW, 512)
    assert one.reading.width == 32
    assert not many.events
    drain(lane, 512)
    found = vectors(many.reading)
    torch.testing.assert_close(found, found[:1].expand(1000, -1), atol=1e-5, rtol=0)


def test_tenants_take_turns_however_much_one_asks(sentences: Model) -> None:
    lane = ReadLane(sentences, "m")
    greedy = [Heard(lane, ask("embed", *["the cat sat on the mat"] * 30, tenant="a")) for _ in range(10)]
    modest = Heard(lane, ask("embed", *["a dog"] * 30, tenant="b"))
    steps = 0
    while not modest.events:
        lane.step(NOW, 256)
        steps += 1
    assert steps == 1
    assert sum(bool(heard.events) for heard in greedy) <= 3


def test_a_lower_priority_number_goes_first(sentences: Model) -> None:
    lane = ReadLane(sentences, "m")
    later = Heard(lane, ask("embed", *["the cat"] * 20, priority=5))
    first = Heard(lane, ask("embed", *["the cat"] * 20, priority=-1))
    lane.step(NOW, 20 * 4)
    assert first.events
    assert not later.events


def test_a_long_text_is_read_in_the_end_among_short_ones(classifier: Model) -> None:
    lane = ReadLane(classifier, "m")
    long = Heard(lane, ask("classify", "cat " * 20))
    for _ in range(4):
        Heard(lane, ask("classify", *["a"] * 4))
        lane.step(NOW, 10)
    assert long.reading.usage.prompt_tokens == 22


def test_a_step_keeps_to_its_budget_unless_one_text_is_longer(sentences: Model) -> None:
    lane = ReadLane(sentences, "m")
    Heard(lane, ask("embed", *["the cat sat on"] * 10))
    assert lane.step(NOW, 20) == 18
    assert lane.step(NOW, 3) == 6
    assert lane.status().waiting_tokens == 36 == 60 - 24
    assert lane.status().steps_by_batch_size == {3: 1, 1: 1}


def test_a_pass_waits_a_little_for_company_unless_it_is_full(sentences: Model) -> None:
    lane = ReadLane(sentences, "m", EngineConfig(read_tokens=512, read_wait_ms=3))
    assert lane.ready_at(NOW) is None
    assert not lane.has_work
    Heard(lane, ask("embed", "the cat"), at=NOW)
    Heard(lane, ask("embed", "the cat"), at=NOW + 0.002)
    assert lane.ready_at(NOW + 0.002) == pytest.approx(NOW + 0.003)
    many = Heard(lane, ask("embed", *["the cat"] * 200), at=NOW + 0.002)
    assert lane.ready_at(NOW + 0.002) == NOW + 0.002
    lane.step(NOW + 0.002, 512)
    assert lane.ready_at(NOW + 0.002) == NOW + 0.002  # what has begun does not wait
    drain(lane)
    status = lane.status()
    assert status.prompt_tokens == 202 * 4
    assert status.queue_counts == (2, 3, *[3] * 10)
    assert status.queue_total_s == pytest.approx(0.002)
    assert (status.running, status.waiting, status.waiting_tokens) == (0, 0, 0)
    assert many.reading


# ends


def test_a_cancelled_request_hears_so_and_is_read_no_further(sentences: Model) -> None:
    lane = ReadLane(sentences, "m")
    gone = Heard(lane, ask("embed", *["the cat"] * 100))
    other = Heard(lane, ask("embed", "a dog"))
    lane.step(NOW, 40)
    gone.ticket.cancel()
    lane.step(NOW, 4)
    assert str(gone.error) == "The request was cancelled."
    assert not lane.has_work
    assert lane.status().waiting_tokens == 0
    assert other.reading
    waiting = Heard(lane, ask("embed", "the cat"))
    lane.cancel(waiting.ticket)
    assert isinstance(waiting.error, RequestError)
    assert lane.step(NOW) == 0


def test_a_request_whose_time_is_over_hears_so(sentences: Model) -> None:
    lane = ReadLane(sentences, "m")
    late = Heard(lane, ask("embed", "the cat"), lasts_s=1.0)
    lane.step(NOW + 2.0)
    assert isinstance(late.error, RequestError)
    assert (late.error.status, late.error.code) == (504, "timeout")
    assert not lane.has_work


def test_a_full_queue_refuses_and_says_when_to_come_again(sentences: Model) -> None:
    lane = ReadLane(sentences, "m", EngineConfig(max_waiting=2, max_waiting_tokens=100))
    kept = [Heard(lane, ask("embed", "the cat")) for _ in range(2)]
    over = Heard(lane, ask("embed", "the cat"))
    assert isinstance(over.error, OverloadedError)
    assert "The queue is full: 2 requests wait, 8 tokens. Try again after" in str(over.error)
    assert over.error.retry_after_s >= 1
    drain(lane)
    assert all(heard.reading for heard in kept)
    alone = Heard(lane, ask("embed", *["the cat"] * 100))  # alone, a request may be longer than the queue
    assert isinstance(Heard(lane, ask("embed", "the cat")).error, OverloadedError)
    drain(lane)
    assert alone.reading


def test_a_full_queue_is_shared_by_its_tenants(sentences: Model) -> None:
    lane = ReadLane(sentences, "m", EngineConfig(max_waiting=4))
    greedy = [Heard(lane, ask("embed", "the cat", tenant="a")) for _ in range(4)]
    modest = [Heard(lane, ask("embed", "the cat", tenant="b")) for _ in range(3)]
    assert [isinstance(heard.events[0], OverloadedError) if heard.events else False for heard in greedy] == [
        False, False, True, True,
    ]  # fmt: skip
    assert isinstance(modest[2].error, OverloadedError)
    drain(lane)
    assert all(heard.reading for heard in (*greedy[:2], *modest[:2]))


def test_a_failed_pass_ends_the_requests_that_were_in_it_and_no_others(
    sentences: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = ReadLane(sentences, "m")
    hit = Heard(lane, ask("embed", "the cat", priority=-1))
    spared = Heard(lane, ask("embed", "the cat"))

    def broken(*_: object, **__: object) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("danlu.serve.engine.reader.run_rows", broken)
        with pytest.raises(MemoryError):
            lane.step(NOW, 4)
    lane.fail(RequestError("The engine failed on a step.", "Try again.", status=500))
    assert "The engine failed" in str(hit.error)
    drain(lane)
    assert spared.reading
    last = Heard(lane, ask("embed", "the cat"))
    lane.fail_all(RequestError("The server is stopping.", "Try elsewhere.", status=503))
    assert "stopping" in str(last.error)
    assert not lane.has_work


def test_requests_are_made_ready_in_many_threads_at_once(sentences: Model) -> None:
    lane = ReadLane(sentences, "m")
    found: list[int] = []

    def work(make: Callable[[], ReadRequest]) -> None:
        found.extend(lane.prepare(make()).num_tokens for _ in range(20))

    threads = [threading.Thread(target=work, args=(lambda: ask("embed", *TEXTS),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert len(set(found)) == 1


def test_a_decoder_with_a_classifier_reads_too(tiny_folder: Path) -> None:
    whole = load_model(tiny_folder, precision="fp32")
    model = with_head(whole, NewClassifier(labels=("bad", "good")), seed=1, source=tiny_folder)
    texts = ["The navy dress is soft.", "I love it! " * 20, "wool"]
    lane = ReadLane(model, "m")
    classes, scores = Heard(lane, ask("classify", *texts)), Heard(lane, ask("score", ("soft?", "very")))
    drain(lane, 512)
    for ours, text in zip(classes.reading.labels, texts, strict=True):
        (expected,) = encode.classify(model, [text])
        assert [share for _, share in ours] == pytest.approx([one.probability for one in expected], abs=1e-5)
    assert 0 < scores.reading.scores[0] < 1
