"""Tokens and texts, there and back."""

import json

import pytest


def post(running, path, body):
    status, _, content = running.call(path, body)
    assert status == 200, content
    return json.loads(content)


def test_texts_and_conversations_become_ids(running):
    assert post(running, "/tokenize", {"prompt": "a b c"}) == {
        "count": 3, "max_model_len": 64, "tokens": [0, 1, 2], "token_strs": None,
    }  # fmt: skip
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi you"}], "return_token_strs": True}
    assert post(running, "/tokenize", body)["token_strs"] == ["hi", "you"]
    assert running.engine.seen[-1].prompt == [{"role": "user", "content": "hi you"}]


def test_ids_become_text(running):
    assert post(running, "/detokenize", {"tokens": [0, 1]}) == {"prompt": "ab"}


def test_the_tokenizer_tells_what_it_is(running):
    info = post(running, "/tokenizer_info", {})
    assert info == json.loads(running.call("/tokenizer_info?model=fake")[2])
    assert (info["tokenizer_class"], info["vocabulary_size"]) == ("bpe", 9)
    assert (info["eos_token"], info["pad_token"]) == ("</s>", None)
    assert running.call("/tokenizer_info?model=none")[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_a_mistake_is_named(running, path, body, param):
    status, error = running.error_of(path, body)
    assert (status, error["param"]) == (400, param)
