"""Model folders from strangers: whatever their files say, the answer is a model or a DanluError, soon."""

import contextlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.core.errors import DanluError, ModelError
from danlu.models.inspect import inspect_config
from danlu.models.load import load_model
from danlu.models.tensors import TensorFiles

from .families import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")

JUNK = st.sampled_from(
    [None, True, False, -1, 0, 3, 7, 2**31, 10**12, 10**30, 1e308, float("nan"), float("inf"), -0.5, "x", "", "silu",
     [], [1, "a"], [[]], {}, {"a": [1]}]
)  # fmt: skip
CONFIGS = {
    name: {**case.make().config.to_dict(), "architectures": [case.peer.__name__]}
    for name, case in FAMILIES.items()
    if "-" not in name or name.startswith("llama")
}


@given(data=st.data())
@settings(max_examples=400)
def test_a_config_with_values_of_the_wrong_kind_is_an_error_that_says_so(data: st.DataObject) -> None:
    theirs: dict[str, Any] = json.loads(json.dumps(CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))], default=str))
    for key in data.draw(st.lists(st.sampled_from(sorted(theirs)), min_size=1, max_size=3)):
        inner = theirs[key]
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JUNK)
        else:
            theirs[key] = data.draw(JUNK)
    with contextlib.suppress(DanluError):
        inspect_config(theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_damaged_is_whole_before(name: str) -> None:
    assert inspect_config(json.loads(json.dumps(CONFIGS[name], default=str))).counts.parameters > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**12}, r"num_hidden_layers is 1e\+12\. At most 10,000 are taken seriously"),
        ({"hidden_size": 10**30}, r"hidden_size is 1e\+30\. At most 2,147,483,648 are taken seriously"),
        ({"intermediate_size": 0}, r"feed-forward width is 0\. It must be positive"),
        ({"num_attention_heads": 0}, r"config\.json of the family 'llama' cannot be read: ZeroDivisionError"),
        ({"architectures": [[]]}, r"config\.json of the family 'llama' cannot be read: .*Copy the model's own"),
        ({"hidden_size": 2**31, "vocab_size": 2**31, "head_dim": 2**31}, r"numbers of this config\.json make no model"),
    ],
)
def test_numbers_that_no_model_has_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        inspect_config({**CONFIGS["llama"], **changes})


# ---- weights ---------------------------------------------------------------------------------------------------------


def stored(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"unpack requires a buffer of 8 bytes"),
        (stored({}, length=2**63), r"its header would have 9223372036854775808 bytes, the file has \d+"),
        (stored({}, length=10**7), r"its header would have 10000000 bytes"),
        (stored(b"[1]"), r"its header is no object"),
        (stored(b"{" * 9), r"Expecting property name"),
        (stored(b"[" * 100_000), r"recursion|Recursion"),
        (stored({"x": [1]}), r"list indices must be integers"),
        (stored({"x": {"dtype": "F32", "shape": [1]}}), r"data_offsets"),
        (stored({"x": entry(dtype="F3")}, bytes(8)), r"a tensor has the type 'F3', known are F64, F32"),
        (stored({"x": entry(dtype=[])}, bytes(8)), r"unhashable type"),
        (stored({"x": entry(shape=[-2])}, bytes(8)), r"a tensor has the shape \(-2,\)"),
        (stored({"x": entry(shape=[2.0])}, bytes(8)), r"a tensor has the shape \(2\.0,\)"),
        (
            stored({"x": entry(shape=[2**70])}, bytes(8)),
            r"a tensor of \(1180591620717411303424,\) F32 lies",
        ),
        (stored({"x": entry(offsets=(0, 4))}, bytes(8)), r"a tensor of \(2,\) F32 lies from 0 to 4"),
        (stored({"x": entry(offsets=(8, 0))}, bytes(8)), r"lies from 8 to 0"),
        (stored({"x": entry(offsets=(4, 12))}, bytes(8)), r"lies from 4 to 12 of 8 bytes"),
        (stored({"x": entry(offsets=(-4, 4))}, bytes(8)), r"lies from -4 to 4"),
    ],
)
def test_a_weights_header_that_lies_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"m\.safetensors is damaged: .*(?:{message}).*Fetch or make it again"):
        TensorFiles([path])


@given(place=st.integers(0, 3000), junk=st.binary(min_size=1, max_size=10), keep=st.integers(0, 200_000))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_the_weights_only_an_error_of_ours_comes_out(
    tmp_path: Path, tiny_folder: Path, place: int, junk: bytes, keep: int
) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        shutil.copytree(tiny_folder, folder)
    data = bytearray((tiny_folder / "model.safetensors").read_bytes())
    data[place : place + len(junk)] = junk
    (folder / "model.safetensors").write_bytes(data[:keep])
    with contextlib.suppress(DanluError):
        assert load_model(folder, precision="fp32", with_tokenizer=False).num_parameters() == 32_032


# ---- the small files -------------------------------------------------------------------------------------------------

SMALL = (
    "config.json", "danlu.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json", "modules.json",
    "special_tokens_map.json", "model.safetensors.index.json",
)  # fmt: skip
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(
                    ["quantization", "scheme", "eos_token", "bos_token", "chat_template", "weight_map", "type", "path",
                     "eos_token_id", "model", "vocab", "added_tokens", "temperature", "model_type", "name", "content"]
                ),
                inner,
                max_size=4,
            ),
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


@given(name=st.sampled_from(SMALL), content=CONTENTS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_a_small_file_only_an_error_of_ours_comes_out(
    tmp_path: Path, tiny_folder: Path, name: str, content: bytes
) -> None:
    folder = tmp_path / "m"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(tiny_folder, folder)
    (folder / name).write_bytes(content)
    with contextlib.suppress(DanluError):
        assert load_model(folder, precision="fp32").num_parameters() == 32_032


@pytest.mark.parametrize("content", ["[]", '{"quantization": 3}'])
def test_a_danlu_json_of_someone_else_is_refused(tmp_path: Path, tiny_folder: Path, content: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
    (folder / "danlu.json").write_text(content)
    with pytest.raises(ModelError, match=r"danlu\.json is not as danlu writes it\. Remove it if the weights are plain"):
        load_model(folder)
