"""What one process sends, the other gets: every kind of request and event, with its types."""

import dataclasses
import random
import socket
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from msgspec import Raw

from danlu.core import errors
from danlu.core.errors import DanluError, ModelError, OverloadedError, RequestError, UnavailableError
from danlu.core.records import Delta, GenerateOptions, Usage
from danlu.serve.engine import wire
from danlu.serve.engine.request import (
    AdapterRequest,
    DetokenizeRequest,
    EngineStatus,
    Reading,
    ReadRequest,
    Reply,
    ServedModel,
    TokenizeRequest,
    TokenizerRequest,
    WriteRequest,
)
from danlu.serve.engine.wire import FrameReader, Outstanding, WireError, frames, pack, pack_event, pack_request

REQUESTS = (WriteRequest, ReadRequest, TokenizeRequest, DetokenizeRequest, TokenizerRequest, AdapterRequest)
TEXTS = ("", "wörld 丹炉", "a\x00b", "x" * 300)


def make(hint: Any, rng: random.Random) -> Any:
    """A random value of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is GenerateOptions:
        return GenerateOptions(n=rng.randint(1, 4), logit_bias={3: -1.5}, stop=("end",), early_stopping="never")
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{field.name: make(hints[field.name], rng) for field in dataclasses.fields(hint)})
    if origin is typing.Literal:
        return rng.choice(arguments)
    if origin in (types.UnionType, typing.Union):
        return make(rng.choice(arguments), rng)
    if origin is tuple and arguments[-1] is not ...:
        return tuple(make(argument, rng) for argument in arguments)
    if origin in (tuple, list, frozenset):
        return origin(make(arguments[0], rng) for _ in range(rng.randint(0, 3)))
    if origin is Sequence:  # messages
        return [{"role": "user", "content": rng.choice(TEXTS)}, {"role": "assistant", "content": None, "x": [1, {}]}]
    if origin in (Mapping, dict):
        return {make(arguments[0], rng): make(arguments[1], rng) for _ in range(rng.randint(0, 2))}
    if hint is Any:
        return rng.choice([None, 1, -2.5, "ü", True, [1, {"a": None}], {"nested": {"deep": [b"\xff"]}}])
    choices = {
        int: (0, 7, -1, 2**40), float: (0.0, -1.5, 1e300, float("inf")), str: TEXTS, bytes: (b"", b"\xff\x00"),
        bool: (True, False), type(None): (None,),
    }  # fmt: skip
    return rng.choice(choices[hint])


def item(content: bytes) -> tuple[str, int, Raw]:
    (found,) = wire._ITEMS.decode(b"\x91" + content)
    return found


def there_and_back(request: Any) -> Any:
    operation, request_id, payload = item(pack_request(5, request))
    assert request_id == 5
    assert wire.is_request(operation)
    return wire.unpack_request(operation, payload)


def heard(event: Any) -> Any:
    operation, _, payload = item(pack_event(5, event))
    assert wire.is_event(operation)
    return wire.unpack_event(operation, payload)


@pytest.mark.parametrize("kind", REQUESTS)
def test_every_request_arrives_as_it_was_sent(kind: type) -> None:
    rng = random.Random(0)
    for _ in range(200):
        request = make(kind, rng)
        assert there_and_back(request) == request


@pytest.mark.parametrize("kind", [Delta, Reading, Reply])
def test_every_event_arrives_as_it_was_sent(kind: type) -> None:
    rng = random.Random(1)
    for _ in range(200):
        event = make(kind, rng)
        assert heard(event) == event


@pytest.mark.parametrize("kind", [EngineStatus, ServedModel])
def test_status_and_models_arrive_as_they_were_sent(kind: type) -> None:
    rng = random.Random(2)
    for _ in range(100):
        value = make(kind, rng)
        assert wire.unpack(item(pack("x", 0, value))[2], kind) == value


def test_pairs_stay_pairs_and_ids_stay_ids() -> None:
    texts = ("plain", ("question", "answer"), [1, 2], [], [7, 8, 9])
    assert there_and_back(ReadRequest(model="m", task="score", texts=texts)).texts == texts


def test_mappings_and_sequences_of_other_kinds_are_sent_as_plain_ones() -> None:
    tool = types.MappingProxyType({"type": "function"})
    prompt = ({"role": "user", "content": "x"},)
    request = WriteRequest(model="m", prompt=prompt, options=GenerateOptions(), tools=(tool,))
    back = there_and_back(request)
    assert back.prompt == [{"role": "user", "content": "x"}]
    assert back.tools == ({"type": "function"},)


def test_every_error_arrives_with_its_class_and_all_it_says() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DanluError)]
    assert len(kinds) >= 12
    for kind in kinds:
        back = heard(kind("What was wrong.", "What to do."))
        assert type(back) is kind
        assert str(back) == "What was wrong. What to do."
    back = heard(RequestError("No.", status=404, code="model_not_found", param="model"))
    assert (back.status, back.code, back.param) == (404, "model_not_found", "model")
    assert heard(OverloadedError("Full.", retry_after_s=7)).retry_after_s == 7
    assert heard(UnavailableError("Gone.", retry_after_s=9)).status == 503


def test_an_error_of_another_kind_arrives_as_the_nearest_of_ours() -> None:
    class Special(ModelError):
        pass

    assert type(heard(Special("odd"))) is ModelError


def test_an_event_that_is_no_plain_data_becomes_an_error() -> None:
    error = heard(Reply(value={"x": object()}))
    assert isinstance(error, RequestError)
    assert str(error) == "An answer could not be sent: object is not sent between processes. Report it."
    with pytest.raises(TypeError, match="not sent between processes"):
        pack_request(1, WriteRequest(model="m", prompt="x", options=GenerateOptions(), tools=({"x": object()},)))
    with pytest.raises(TypeError, match="surrogates not allowed"):
        pack_request(1, WriteRequest(model="m", prompt="half \ud800", options=GenerateOptions()))


@pytest.mark.parametrize(
    ("operation", "payload"),
    [
        ("WriteRequest", {"model": 3}),
        ("WriteRequest", {"nonsense": 1}),
        ("WriteRequest", [1]),
        ("WriteRequest", {"model": "m"}),
    ],
)
def test_a_request_of_wrong_types_is_refused(operation: str, payload: Any) -> None:
    with pytest.raises(WireError, match="a WriteRequest is not as promised"):
        wire.unpack_request(operation, item(pack(operation, 1, payload))[2])


def test_an_event_of_wrong_types_is_refused() -> None:
    with pytest.raises(WireError, match="a Delta is not as promised"):
        wire.unpack_event("Delta", item(pack("Delta", 1, {"text": 3}))[2])
    with pytest.raises(WireError, match="SystemExit is no error of ours"):
        wire.unpack_event("error", item(pack("error", 1, ["SystemExit", "a", "b"]))[2])
    with pytest.raises(WireError, match="not as promised"):
        wire.unpack(item(pack("x", 1, "text"))[2], float)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wire.check_hello(item(wire.hello()))
    with pytest.raises(WireError, match="another version of danlu: 1/abc"):
        wire.check_hello(item(pack("hello", 0, wire.Hello(1, "abc"))))
    with pytest.raises(WireError, match="begins with 'spec' instead of a greeting"):
        wire.check_hello(item(pack("spec", 0, None)))
    before = wire.hello()
    monkeypatch.setattr(wire, "_REQUESTS", {"WriteRequest": WriteRequest})
    assert wire.hello() != before, "a changed set of fields is another version"


def test_a_request_is_over_with_its_last_answer() -> None:
    ended, usage = Delta(text="", finish_reason="stop"), Usage(prompt_tokens=1, completion_tokens=1)
    aborted = Delta(text="", finish_reason="abort", usage=usage)
    three = WriteRequest(model="m", prompt="x", options=GenerateOptions(n=3))
    outstanding = Outstanding(three)
    assert [outstanding.is_last(e) for e in (Delta(text="a"), ended, ended, Delta(text="b"), ended)] == [
        False, False, False, False, True,
    ]  # fmt: skip
    assert Outstanding(three).is_last(RequestError("no"))
    assert not Outstanding(three).is_last(aborted)
    cancelled = Outstanding(three)
    cancelled.is_cancelled = True
    assert cancelled.is_last(aborted)
    assert Outstanding(ReadRequest(model="m", task="embed")).is_last(Reading(usage=usage))


# frames


def test_items_share_a_frame_and_arrive_in_order_however_the_bytes_are_cut() -> None:
    items = [pack("Delta", number, {"text": "x" * number}) for number in range(50)]
    (frame,) = frames(items, 1 << 20)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = FrameReader(theirs)
        for start in range(0, len(frame), 7):
            assert reader.read(0.0) is None
            ours.sendall(frame[start : start + 7])
        found = reader.read(1.0)
        assert found is not None
        assert [request_id for _, request_id, _ in found] == list(range(50))
        ours.sendall(frame * 2)
        assert len(reader.read(1.0) or ()) == len(reader.read(1.0) or ()) == 50
        ours.close()
        with pytest.raises(EOFError):
            reader.read(1.0)


def test_many_items_are_cut_into_frames_that_are_small_enough() -> None:
    items = [pack("Delta", number, "x" * 100) for number in range(100)]
    cut = frames(items, 1000)
    assert all(len(frame) <= 1004 for frame in cut)
    assert len(cut) == 12
    assert frames([], 1000) == []


def test_a_frame_that_is_too_large_or_nonsense_is_refused() -> None:
    for content, words in (
        ((1 << 30).to_bytes(4, "big"), "a frame of 1073741824 bytes is larger than 1000"),
        (b"\x00\x00\x00\x03abc", "a frame is not as promised"),
        (b"\x00\x00\x00\x04\x91\x93\x01\x02", "a frame is not as promised"),
    ):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(content)
            with pytest.raises(WireError, match=words):
                FrameReader(theirs, 1000).read(1.0)


def test_damaged_bytes_are_refused_and_nothing_else_happens() -> None:
    rng = random.Random(3)
    (whole,) = frames([pack_request(1, make(WriteRequest, rng)), pack_event(2, make(Delta, rng))], 1 << 20)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(4, len(damaged))] = rng.randrange(256)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(damaged)
            try:
                for operation, _, payload in FrameReader(theirs).read(1.0) or ():
                    if wire.is_request(operation):
                        wire.unpack_request(operation, payload)
                    elif wire.is_event(operation):
                        wire.unpack_event(operation, payload)
            except (WireError, DanluError):
                refused += 1
    assert refused > 250
