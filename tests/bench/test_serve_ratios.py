import pytest

from bench.serve_ratios import ratios


def runs(name: str, *values: float) -> dict[str, list[dict[str, float]]]:
    return {"runs": [{name: value} for value in values]}


def test_ratios_are_of_medians_and_against_the_better_llama_cpp() -> None:
    def system(tokens: float, ttft: float) -> dict[str, list[dict[str, float]]]:
        rounds = (0.5, 1.0, 9.0)
        return {"runs": [{"output_throughput": tokens * share, "p95_ttft_ms": ttft * share} for share in rounds]}

    rivals = {"llama_cpp_q8_0": system(100.0, 80.0), "xllamacpp_q8_0": system(50.0, 40.0)}
    level = {"systems": {"ours_int8": system(150.0, 20.0), **rivals}}
    found = ratios({"decode": {"1": level, "8": level}, "limit": {"bytes_per_token": 2.0, "bytes_per_s": 600.0}})
    assert found == {
        "decode1_vs_llamacpp": 1.5, "limit_share": 0.5, "decode8_vs_llamacpp": 1.5, "ttft8_vs_llamacpp": 2.0,
    }  # fmt: skip


def test_the_faster_number_type_of_a_peer_counts() -> None:
    facts = {
        "ours": runs("texts_per_s", 90.0), "infinity_emb": runs("texts_per_s", 60.0),
        "sentence_transformers_fp32": runs("texts_per_s", 30.0),
        "sentence_transformers_bf16": runs("texts_per_s", 45.0),
    }  # fmt: skip
    assert ratios({"embed": facts}) == {
        "embed_vs_sentence_transformers_default": 3.0, "embed_vs_sentence_transformers": 2.0, "embed_vs_infinity": 1.5,
    }  # fmt: skip
    level = {"ours_int8": runs("output_throughput", 80.0), "transformers_bf16": runs("output_throughput", 20.0),
             "transformers_fp32": runs("output_throughput", 10.0)}  # fmt: skip
    assert ratios({"transformers": {"32": {"systems": level}}}) == {"decode32_vs_transformers": 4.0}


def test_shares_are_of_our_own_runs() -> None:
    found = ratios({
        "prefix": {"ours_int8": {"cold": [{"median_ttft_ms": 400.0}], "cached": [{"median_ttft_ms": 100.0}]}},
        "lora": {"one": [{"output_throughput": 100.0}], "four": [{"output_throughput": 85.0}]},
        "overload": {"peak": [{"request_throughput": 4.0}], "overload": [{"request_throughput": 3.8}]},
        "startup": {"ours_int8": {"first_s": 9.0, "warm_s": [3.0, 5.0, 4.0]}},
    })  # fmt: skip
    assert found == pytest.approx(
        {"prefix_ttft": 0.25, "lora4_share": 0.85, "overload_goodput": 0.95, "startup_s": 4.0}
    )
