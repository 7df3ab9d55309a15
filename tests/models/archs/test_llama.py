import pytest

from danlu.core.errors import ModelError
from danlu.models.archs.llama import plugin as llama
from danlu.models.config import CoreConfig

WHOLE = {
    "model_type": "llama",
    "vocab_size": 420,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


def test_what_a_config_leaves_out_is_what_the_family_assumes() -> None:
    config = llama.read_config(WHOLE)
    assert (config.num_kv_heads, config.head_width, config.rope_base, config.tied_head) == (4, 8, 10_000.0, False)


def test_the_rotary_base_is_read_from_both_places_where_it_may_stand() -> None:
    assert llama.read_config({**WHOLE, "rope_theta": 5e5}).rope_base == 5e5
    inside = {"rope_parameters": {"rope_type": "default", "rope_theta": 2e5}}
    assert llama.read_config({**WHOLE, **inside}).rope_base == 2e5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "config.json: hidden_act is 'gelu'. Only 'silu' is supported so far."),
        ({"attention_bias": True}, "config.json: attention_bias is True. Only False"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "config.json: rope_scaling is {'rope_type': 'llama3'",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "config.json: rope_type is 'yarn'."),
        ({"quantization_config": {"bits": 4}}, "config.json: quantization_config is {'bits': 4}."),
        ({"hiden_act": "silu"}, "config.json has an unknown key 'hiden_act'. Did you mean 'hidden_act'?"),
        ({"rms_norm_epsilon": 1e-6}, "unknown key 'rms_norm_epsilon'. Did you mean 'rms_norm_eps'?"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads"),
        ({"head_dim": 7}, "head width 7 is odd"),
        ({"hidden_size": 0}, "width is 0. It must be positive"),
        ({"rms_norm_eps": 0.0}, "norm_epsilon is 0.0. It must be positive"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as error:
        llama.read_config({**WHOLE, **changes})
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["vocab_size", "rms_norm_eps", "num_attention_heads"])
def test_a_missing_number_is_named(key: str) -> None:
    with pytest.raises(ModelError, match=f"config.json lacks '{key}'. Copy the model's whole config.json"):
        llama.read_config({name: value for name, value in WHOLE.items() if name != key})


def test_missing_gguf_metadata_is_named() -> None:
    with pytest.raises(ModelError, match=r"The GGUF metadata lacks 'llama\.attention\.head_count'"):
        llama.config_from_gguf({"general.architecture": "llama"})


def test_an_untied_head_has_weights_of_its_own() -> None:
    tied, untied = (
        set(llama.weight_names(llama.read_config({**WHOLE, "tie_word_embeddings": is_tied})))
        for is_tied in (True, False)
    )
    assert untied - tied == {"head.weight"}


def test_the_numbers_of_a_core_are_all_written(root: object) -> None:
    config = CoreConfig(
        vocabulary_size=99, width=24, num_layers=3, num_heads=6, num_kv_heads=2, head_width=6, feedforward_width=50,
        context_length=77, norm_epsilon=3e-6, rope_base=12_345.0, tied_head=False,
    )  # fmt: skip
    assert llama.read_config(llama.write_config(config)) == config
