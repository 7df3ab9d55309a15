"""The headline numbers of bench/serve.py out of the facts of its cases.

They are computed from a whole result, so that one can be added to later. ``X_vs_Y`` is how many times better ours is
(more tokens a second, less time); of two builds of llama.cpp the better one counts.
"""

from __future__ import annotations

import statistics
from typing import Any

Facts = dict[str, Any]


def ratios(runs: dict[str, Facts]) -> dict[str, float]:
    """By name; only those whose cases were run."""
    found: dict[str, float] = {}
    for level, facts in runs.get("decode", {}).items():
        rate = {name: middle(each, "output_throughput") for name, each in facts["systems"].items()}
        rival = max(rate[name] for name in ("llama_cpp_q8_0", "xllamacpp_q8_0"))
        found[f"decode{level}_vs_llamacpp"] = rate["ours_int8"] / rival
        if level == "8":
            ttft = {name: middle(each, "p95_ttft_ms") for name, each in facts["systems"].items()}
            best = min(ttft[name] for name in ("llama_cpp_q8_0", "xllamacpp_q8_0"))
            found["ttft8_vs_llamacpp"] = best / ttft["ours_int8"]
        if level == "1" and "limit" in runs:
            found["limit_share"] = rate["ours_int8"] * runs["limit"]["bytes_per_token"] / runs["limit"]["bytes_per_s"]
    for level, facts in runs.get("transformers", {}).items():
        rate = {name: middle(each, "output_throughput") for name, each in facts["systems"].items()}
        rival = max(value for name, value in rate.items() if name.startswith("transformers"))
        found[f"decode{level}_vs_transformers"] = rate["ours_int8"] / rival
    for level, facts in runs.get("transformers_serve", {}).items():
        rate = {name: middle(each, "output_throughput") for name, each in facts["systems"].items()}
        found[f"decode{level}_vs_transformers_serve"] = rate["ours_int8"] / rate["transformers_serve_bf16"]
    if facts := runs.get("prefill"):
        rate = {name: middle(each, "total_token_throughput") for name, each in facts.items()}
        found["prefill_vs_llamacpp"] = rate["ours_int8"] / max(rate["llama_cpp_q8_0"], rate["xllamacpp_q8_0"])
    if facts := runs.get("embed"):
        rate = {name: middle(each, "texts_per_s") for name, each in facts.items() if "runs" in each}
        rival = max(value for name, value in rate.items() if name.startswith("sentence"))
        found["embed_vs_sentence_transformers_default"] = rate["ours"] / rate["sentence_transformers_fp32"]
        found["embed_vs_sentence_transformers"] = rate["ours"] / rival
        if "ours_int8" in rate:
            found["embed_int8_vs_sentence_transformers"] = rate["ours_int8"] / rival
        found |= {"embed_vs_infinity": rate["ours"] / rate["infinity_emb"]}
    if (facts := runs.get("beams")) and "ours_int8" in facts:
        rate = {name: middle(each, "output_throughput") for name, each in facts.items()}
        found["beams4_vs_ctranslate2"] = rate["ours_int8"] / rate["ctranslate2_int8"]
    return {name: round(ratio, 3) for name, ratio in (found | _ours_alone(runs)).items()}


def _ours_alone(runs: dict[str, Facts]) -> dict[str, float]:
    """Numbers that no peer has a part in."""
    found: dict[str, float] = {}
    if facts := runs.get("prefix"):
        cached, cold = ({"runs": facts["ours_int8"][name]} for name in ("cached", "cold"))
        found["prefix_ttft"] = middle(cached, "median_ttft_ms") / middle(cold, "median_ttft_ms")
    if facts := runs.get("lora"):
        four, one = ({"runs": facts[name]} for name in ("four", "one"))
        found["lora4_share"] = middle(four, "output_throughput") / middle(one, "output_throughput")
    if facts := runs.get("json"):
        for ratio, system in (("json_share", "ours_int8"), ("json_share_no_guesses", "ours_int8_no_guesses")):
            if system in facts:
                schema, free = ({"runs": facts[system][name]} for name in ("schema", "free"))
                found[ratio] = middle(schema, "output_throughput") / middle(free, "output_throughput")
    if facts := runs.get("overload"):
        over, peak = ({"runs": facts[name]} for name in ("overload", "peak"))
        found["overload_goodput"] = middle(over, "request_throughput") / middle(peak, "request_throughput")
    if facts := runs.get("items"):
        for level, name in (("64", "items_per_s"), ("32", "items_per_s_32_clients")):
            found[name] = middle(facts[level], "request_throughput")
    if facts := runs.get("startup"):
        found["startup_s"] = statistics.median(facts["ours_int8"]["warm_s"])
    if facts := runs.get("client"):
        found["client_us_per_chunk"] = facts["us_per_chunk"]
    return found


def middle(facts: Facts, name: str) -> float:
    """Median over the rounds of a system."""
    return statistics.median(run[name] for run in facts["runs"])
