"""The cases of bench/serve.py: what each one measures. A case returns facts: every run of every system."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serve_client
import serve_quality
import serve_split
import serve_systems as systems
import serve_weights as weights
from serve_peers import FOLDER, ROOT
from serve_systems import in_turns, standing, their_result

from danlu.client.load_prompts import WORDS

Facts = dict[str, Any]
QUICKSTART = ROOT / ".bench" / "quickstart"
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["title", "colour", "sizes", "copy"],
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 60}, "colour": {"enum": ["navy", "black", "ivory"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 8},
        "copy": {"type": "string", "minLength": 100, "maxLength": 400},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    rounds: int
    """Runs of each system."""
    share: float
    """Of the usual number of requests; less than 1 to try things out."""

    def requests(self, usual: int) -> int:
        """Number of requests of one run."""
        return max(2, round(usual * self.share))


def decode(options: Options) -> Facts:
    """128 tokens in, 128 out, greedy, at 1, 8 and 32 at once: ours in int8 and bf16, llama.cpp in Q8_0 and BF16."""
    weights.decoder()
    facts: Facts = {}
    for level, usual in ((1, 8), (8, 32), (32, 64)):
        print(f"decode, {level} at once")
        servers = [
            systems.ours(weights.INT8), systems.llama_cpp(weights.GGUF["q8_0"], level),
            systems.xllamacpp(weights.GGUF["q8_0"], level), systems.ours(weights.PLAIN, "ours_bf16"),
            systems.llama_cpp(weights.GGUF["bf16"], level, "llama_cpp_bf16"),
        ]  # fmt: skip
        arguments = ("--concurrency", level, "--num-requests", options.requests(usual), "--ignore-eos")
        in_turns(servers, options.rounds, *arguments)
        facts[str(level)] = {"systems": {server.name: server.summary() for server in servers}}
    return facts


def split(options: Options) -> Facts:
    """Where the time of a token goes in ours, at 1, 8 and 32 at once."""
    weights.decoder()
    server = systems.ours(weights.INT8)
    with standing([server]):
        return {
            str(level): serve_split.split(server, weights.INT8, level, options.requests(usual))
            for level, usual in ((1, 4), (8, 32), (32, 64))
        }


def transformers(options: Options) -> Facts:
    """The same work by transformers' ``generate``, a whole batch at once, without HTTP; ours as in ``decode``."""
    weights.decoder()
    facts: Facts = {}
    for level, usual in ((1, 8), (32, 64)):
        print(f"generate, {level} at once")
        server = systems.ours(weights.INT8)
        found: dict[str, list[Facts]] = {"transformers_bf16": [], "transformers_fp32": []}
        arguments = ("--concurrency", level, "--num-requests", options.requests(usual), "--ignore-eos")
        length = max(8, round(128 * min(1.0, options.share)))
        with standing([server]):
            for number in range(options.rounds):
                server.measure(*arguments, "--seed", number)
                for precision in ("bf16", "fp32"):
                    run = their_result("generate", weights.PLAIN, precision, level, 128, length, number)
                    found[f"transformers_{precision}"].append(run)
                    print(f"  transformers_{precision:<15} {run['output_throughput']:9.1f} tokens/s out", flush=True)
        runs = {name: {"runs": each} for name, each in found.items()}
        facts[str(level)] = {"systems": {server.name: server.summary(), **runs}}
    return facts


def transformers_serve(options: Options) -> Facts:
    """128 tokens in, 128 out, at 1, 8 and 32 at once: ours, and ``transformers serve`` with continuous batching.

    It keeps no answer from ending early, so ours is asked the same way, without ``ignore_eos``.
    """
    weights.decoder()
    facts: Facts = {}
    for level, usual in ((1, 4), (8, 16), (32, 64)):
        print(f"transformers serve, {level} at once")
        servers = [systems.ours(weights.INT8), systems.transformers(weights.PLAIN)]
        in_turns(servers, options.rounds, "--concurrency", level, "--num-requests", options.requests(usual))
        facts[str(level)] = {"systems": {server.name: server.summary() for server in servers}}
    return facts


def prefill(options: Options) -> Facts:
    """512 tokens in, 1 out, one at a time."""
    weights.decoder()
    file = weights.GGUF["q8_0"]
    servers = [systems.ours(weights.INT8), systems.llama_cpp(file, 1), systems.xllamacpp(file, 1)]
    servers.append(systems.ours(weights.PLAIN, "ours_bf16"))
    in_turns(servers, options.rounds, "--input-tokens", 512, "--output-tokens", 1,
             "--num-requests", options.requests(16))  # fmt: skip
    return {server.name: server.summary() for server in servers}


def prefix(options: Options) -> Facts:
    """512 tokens in common and 64 of one's own in, 64 out: each beginning new, then always the same one."""
    weights.decoder()
    servers = [systems.ours(weights.INT8), systems.llama_cpp(weights.GGUF["q8_0"], 1)]
    usual = options.requests(12)
    found: dict[str, Facts] = {server.name: {"cold": [], "cached": []} for server in servers}
    with standing(servers):
        for number in range(options.rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                for name, beginnings in (("cold", usual), ("cached", 1)):
                    run = server.ask(
                        "--prefix-tokens", 512, "--num-prefixes", beginnings, "--input-tokens", 64, "--output-tokens",
                        64, "--num-requests", usual, "--ignore-eos", "--seed", f"{number}{beginnings}",
                    )  # fmt: skip
                    found[server.name][name].append(run)
                    print(f"  {server.name} {name}: TTFT {run['median_ttft_ms']:.1f} ms", flush=True)
    return found


def embed(options: Options) -> Facts:
    """256 texts of 16 to 256 words, 32 in a request, two requests at once: ours and infinity over HTTP;
    sentence-transformers in its own process."""
    weights.sentences()
    servers = [
        systems.ours(weights.MINILM, "ours"), systems.ours(weights.MINILM, "ours_int8", "--scheme", "int8"),
        systems.infinity(weights.MINILM),
    ]  # fmt: skip
    found: dict[str, list[Facts]] = {"sentence_transformers_fp32": [], "sentence_transformers_bf16": []}
    with standing(servers):
        for number in range(options.rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                server.measure("--endpoint", "embeddings", "--file", weights.MIXED_TEXTS, "--batch", 32,
                               "--concurrency", 2, "--num-requests", options.requests(16))  # fmt: skip
                server.runs[-1]["texts_per_s"] = 32 * server.runs[-1]["request_throughput"]
            for precision in ("fp32", "bf16"):
                run = their_result("encode", weights.MINILM, precision, weights.MIXED_TEXTS, 32)
                found[f"sentence_transformers_{precision}"].append(run)
    facts = {server.name: server.summary() for server in servers} | {name: {"runs": r} for name, r in found.items()}
    for name, each in facts.items():
        print(f"  {name:<28} {statistics.median(run['texts_per_s'] for run in each['runs']):9.1f} texts/s", flush=True)
    return facts | {"cosine_to_fp32": serve_quality.cosines()}


def lora(options: Options) -> Facts:
    """Eight at once with one adapter, and with four in the same batch."""
    weights.decoder()
    weights.adapters()
    names = [folder.name for folder in weights.ADAPTERS]
    loaded = [word for folder in weights.ADAPTERS for word in ("--lora", f"{folder.name}={folder}")]
    server = systems.ours(weights.INT8, "ours_int8", *loaded)
    found: Facts = {"base": [], "one": [], "four": []}
    with standing([server]):
        for number in range(options.rounds):
            for name, models in (("base", ["model"]), ("one", names[:1]), ("four", names)):
                run = server.ask("--concurrency", 8, "--num-requests", options.requests(32), "--ignore-eos", "--seed",
                                 number, "--models", *models)  # fmt: skip
                found[name].append(run)
                print(f"  {name}: {run['output_throughput']:.1f} tokens/s", flush=True)
    return found


def json_schema(options: Options) -> Facts:
    """Eight at once, answers in a JSON schema, then free ones to other prompts, each as long as one of the former.

    Free answers repeat themselves more often and so are guessed more often; without guesses what remains is what the
    grammar costs.
    """
    weights.decoder()
    path = FOLDER / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    servers = [
        systems.ours(weights.INT8), systems.llama_cpp(weights.GGUF["q8_0"], 8),
        systems.ours(weights.INT8, "ours_int8_no_guesses", "--engine.no-speculation"),
    ]  # fmt: skip
    usual = options.requests(32)
    common = ("--endpoint", "chat", "--concurrency", 8, "--num-requests", usual)
    found: dict[str, Facts] = {server.name: {"schema": [], "free": []} for server in servers}
    with standing(servers):
        for number in range(options.rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                asked = _rows(f"schema {number}", [256] * usual)
                run = server.ask(*common, "--file", asked, "--json-schema", path, "--details")
                asked = _rows(f"free {number}", run.pop("output_lens"))
                free = server.ask(*common, "--file", asked, "--ignore-eos")
                found[server.name]["schema"].append(run)
                found[server.name]["free"].append(free)
                print(f"  {server.name}: {run['output_throughput']:.1f} of {free['output_throughput']:.1f} tokens/s, "
                      f"{run['valid_json']} of {run['completed']} whole JSON", flush=True)  # fmt: skip
    return found


def _rows(seed: str, lengths: Sequence[int]) -> Path:
    """A file of prompts of 128 words that nobody has seen, and the length of each answer."""
    draw = random.Random(seed)
    rows = [{"prompt": " ".join(draw.choices(WORDS, k=128)), "output_tokens": length} for length in lengths]
    path = FOLDER / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def overload(options: Options) -> Facts:
    """What a server finishes when twice as many requests come as it can answer; 64 tokens in, 64 out."""
    weights.decoder()
    server = systems.ours(weights.INT8)
    lengths = ("--input-tokens", 64, "--output-tokens", 64, "--ignore-eos")
    found: Facts = {"peak": [], "overload": []}
    with standing([server]):
        for number in range(options.rounds):
            peak = server.ask(*lengths, "--concurrency", 32, "--num-requests", options.requests(128), "--seed", number)
            rate = 2 * peak["request_throughput"]
            run = server.ask(*lengths, "--rate", rate, "--num-requests", max(8, round(30 * rate * options.share)),
                             "--seed", 1000 + number)  # fmt: skip
            found["peak"].append(peak)
            found["overload"].append(run)
            print(f"  peak {peak['request_throughput']:.2f} req/s; at twice that {run['request_throughput']:.2f} "
                  f"req/s, {run['failures']}", flush=True)  # fmt: skip
        found["after"] = server.ask(*lengths, "--concurrency", 1, "--num-requests", 2)
    return found


def beams(options: Options) -> Facts:
    """Four beams of an encoder-decoder of BART-base's shape (random weights), 256 tokens in, 64 out: ours over HTTP,
    CTranslate2 int8 in its own process."""
    weights.encoder_decoder()
    texts = FOLDER / "sources.jsonl"
    rows = [" ".join(f"w{4 + (row * 7919 + place * 104729) % 50000}" for place in range(254)) for row in range(16)]
    texts.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows), encoding="utf-8")
    plain = weights.BART / "plain"
    servers = [systems.ours(plain, "ours_int8", "--scheme", "int8"), systems.ours(plain, "ours")]
    found: list[Facts] = []
    with standing(servers):
        for _ in range(options.rounds):
            for server in servers:
                server.measure("--file", texts, "--output-tokens", 64, "--num-requests", options.requests(16),
                               "--concurrency", 8, "--extra-body", '{"num_beams": 4, "min_tokens": 64}')  # fmt: skip
            found.append(their_result("beams", weights.BART / "ctranslate2", options.requests(16), 256, 64, 8))
            print(f"  ctranslate2_int8 {found[-1]['output_throughput']:.1f} tokens/s", flush=True)
    return {**{server.name: server.summary() for server in servers}, "ctranslate2_int8": {"runs": found}}


def items(options: Options) -> Facts:
    """The quickstart's own model on the quickstart's own test products, 32 and 64 clients at once."""
    artifact = _artifact("product-copy")
    samples = max(QUICKSTART.glob("artifacts/*/samples.jsonl"), key=lambda path: path.stat().st_mtime)
    rows = FOLDER / "items.jsonl"
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    rows.write_text("".join(json.dumps({"messages": line["prompt"]}) + "\n" for line in lines), encoding="utf-8")
    server = systems.ours(artifact, "ours")
    found: Facts = {"32": {"runs": []}, "64": {"runs": []}}
    with standing([server]):
        for number in range(options.rounds):
            for level, facts in found.items():  # nobody finds what another run left in the prefix cache
                salt = json.dumps({"cache_salt": f"{level} {number}"})
                run = server.ask("--endpoint", "chat", "--file", rows, "--output-tokens", 96, "--concurrency", level,
                                 "--num-requests", options.requests(len(lines)), "--extra-body", salt)  # fmt: skip
                facts["runs"].append(run)
                print(f"  {level} clients: {run['request_throughput']:.1f} items/s", flush=True)
    return found


def _artifact(alias: str) -> Path:
    try:
        return QUICKSTART / "artifacts" / (QUICKSTART / "aliases" / alias).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise SystemExit("The quickstart's model is not there: run `make bench-quickstart` first.") from None


def startup(options: Options) -> Facts:
    """From the launch to the first token; the first start, which fills caches, is told apart."""
    weights.decoder()
    servers = [systems.ours(weights.INT8), systems.llama_cpp(weights.GGUF["q8_0"], 8)]
    for _ in range(options.rounds + 1):
        for server in servers:
            with standing([server]):
                pass
            print(f"  {server.name}: {server.facts['startup_s'][-1]:.2f} s", flush=True)
    return {server.name: {"first_s": server.facts["startup_s"][0], "warm_s": server.facts["startup_s"][1:]}
            for server in servers}  # fmt: skip


def limit(options: Options) -> Facts:
    """What memory gives when two threads only read, and the bytes that one token of ours reads."""
    code = "import sys; sys.path.insert(0, 'bench'); import serve_client; print(serve_client.read_bandwidth())"
    run = subprocess.run([*systems.CPUS, sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         cwd=ROOT, env=systems.ENVIRONMENT)  # fmt: skip
    weights.decoder()
    size = (weights.INT8 / "model.safetensors").stat().st_size
    return {"bytes_per_s": float(run.stdout), "bytes_per_token": size}


def client(options: Options) -> Facts:
    """What the load client itself costs, against a server that only sends."""
    return serve_client.cost()


def quality(options: Options) -> Facts:
    """Perplexity and KL to fp32 of every precision, ours and llama.cpp's, on the same text."""
    weights.decoder()
    weights.held_out()
    return serve_quality.measure(max(2, round(24 * options.share)))


CASES: dict[str, Callable[[Options], Facts]] = {
    "client": client, "limit": limit, "startup": startup, "decode": decode, "split": split, "prefill": prefill,
    "prefix": prefix, "transformers": transformers, "transformers_serve": transformers_serve,
    "embed": embed, "lora": lora, "json": json_schema,
    "overload": overload, "beams": beams, "items": items, "quality": quality,
}  # fmt: skip
