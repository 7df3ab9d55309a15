import pytest

from danlu.core.errors import ModelError
from danlu.core.records import GenerateOptions
from danlu.models.defaults import GenerationDefaults

BART_CNN = {
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2, "forced_bos_token_id": 0,
    "forced_eos_token_id": 2, "early_stopping": True, "length_penalty": 2.0, "max_length": 142, "min_length": 56,
    "no_repeat_ngram_size": 3, "num_beams": 4,
}  # fmt: skip
"""As the summariser's config.json of 2021 has it."""


def test_an_old_config_says_how_its_makers_generate() -> None:
    found = GenerationDefaults.read(BART_CNN)
    assert (found.start_id, found.first_ids, found.last_ids, found.end_ids) == (2, (0,), (2,), {2})
    assert found.options(prompt_tokens=1) == GenerateOptions(
        max_tokens=141, min_tokens=55, num_beams=4, length_penalty=2.0, early_stopping=True, no_repeat_ngram_size=3
    )
    assert found.options(prompt_tokens=1, max_tokens=29).min_tokens == 29


def test_generation_config_has_the_last_word() -> None:
    generation = {"eos_token_id": [2, 7], "num_beams": 1, "decoder_start_token_id": 5, "length_penalty": None}
    found = GenerationDefaults.read(BART_CNN, generation)
    assert (found.end_ids, found.start_id) == ({2, 7}, 5)
    assert found.options().num_beams == 1
    assert found.settings["length_penalty"] == 2.0


def test_sampling_settings_count_only_when_the_model_samples() -> None:
    settings = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert GenerationDefaults.read({}, {**settings, "do_sample": True}).options() == GenerateOptions(**settings)  # type: ignore[arg-type]
    assert GenerationDefaults.read({}, settings).options() == GenerateOptions(repetition_penalty=1.05)
    contrastive = GenerationDefaults.read({}, {"penalty_alpha": 0.6, "top_k": 4}).options()
    assert (contrastive.penalty_alpha, contrastive.top_k) == (0.6, 4)


def test_translation_models_never_write_padding() -> None:
    marian = {"decoder_start_token_id": 58100, "bad_words_ids": [[58100]], "suppress_tokens": [3, 4], "eos_token_id": 0}
    assert GenerationDefaults.read(marian).banned == ((58100,), (3,), (4,))


def test_an_answer_starts_as_the_text_does_where_nothing_else_is_said() -> None:
    assert GenerationDefaults.read({"bos_token_id": 6}).start_id == 6
    assert GenerationDefaults.read({}).start_id is None
    assert GenerationDefaults.read({"bos_token_id": 6, "force_bos_token_to_be_generated": True}).first_ids == (6,)


def test_a_setting_that_danlu_does_not_have_is_refused() -> None:
    assert GenerationDefaults.read({}, {"typical_p": 1.0, "num_beam_groups": 1}).options() == GenerateOptions()
    with pytest.raises(ModelError, match=r"sets num_beam_groups to 3, which is not supported"):
        GenerationDefaults.read({}, {"num_beam_groups": 3}).options()
