"""What bench/serve.py runs in the peers' environment (see serve_peers.py): one job a call, its result printed as JSON.

    .bench/serve/venv/bin/python bench/serve_theirs.py generate MODEL_FOLDER bf16 BATCH INPUT_TOKENS OUTPUT_TOKENS SEED

Everything here runs in the peer's own process, without HTTP, which is in its favour. Imports nothing of danlu.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

THREADS = 2


def generate(folder: str, precision: str, batch: str, input_tokens: str, output_tokens: str, seed: str) -> Any:
    """transformers' ``generate``: greedy, a whole batch at once, no end before the length; a shorter call warms up."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = torch.randint(1000, 40000, (int(batch), int(input_tokens)), generator=torch.manual_seed(int(seed)))
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    options |= {"temperature": None, "top_p": None, "top_k": None}

    def write(count: int) -> float:
        started = time.perf_counter()
        answer = model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
        assert answer.shape[1] == ids.shape[1] + count
        return time.perf_counter() - started

    write(4)
    first_s, seconds = write(1), write(int(output_tokens))
    num_output = ids.shape[0] * int(output_tokens)
    return {"output_throughput": num_output / seconds, "prefill_throughput": ids.numel() / first_s, "seconds": seconds}


def encode(folder: str, precision: str, texts: str, batch: str) -> Any:
    """sentence-transformers on the lines of a JSON file; a first pass warms up."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(THREADS)
    model = SentenceTransformer(folder, device="cpu")
    model = model.bfloat16() if precision == "bf16" else model.float()
    rows = [json.loads(line)["text"] for line in Path(texts).read_text(encoding="utf-8").splitlines()]
    model.encode(rows[: int(batch)], batch_size=int(batch))
    started = time.perf_counter()
    vectors = model.encode(rows, batch_size=int(batch), show_progress_bar=False)
    seconds = time.perf_counter() - started
    return {"texts_per_s": len(vectors) / seconds, "seconds": seconds, "width": int(vectors.shape[1])}


def make_bart(folder: str) -> Any:
    """BART-base's shape with random weights and made-up words, as transformers and as CTranslate2 save it."""
    import ctranslate2
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=50265, d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12,
        decoder_attention_heads=12, encoder_ffn_dim=3072, decoder_ffn_dim=3072, forced_eos_token_id=None,
    )  # fmt: skip
    config.update({"normalize_before": False, "normalize_embedding": True})  # the converter asks for them
    BartForConditionalGeneration(config).save_pretrained(f"{folder}/plain")
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(4, 50265))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    roles = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(f"{folder}/plain")
    converter = ctranslate2.converters.TransformersConverter(f"{folder}/plain")
    converter.convert(f"{folder}/ctranslate2", quantization="int8", force=True)
    return {"folder": folder}


def beams(folder: str, num_texts: str, input_tokens: str, output_tokens: str, batch: str) -> Any:
    """CTranslate2 in int8 with four beams, sources of made-up words, all answers of the same length."""
    import ctranslate2

    model = ctranslate2.Translator(folder, device="cpu", inter_threads=1, intra_threads=THREADS, compute_type="int8")
    sources = [
        ["<s>", *(f"w{4 + (row * 7919 + place * 104729) % 50000}" for place in range(int(input_tokens) - 2)), "</s>"]
        for row in range(int(num_texts))
    ]
    length = int(output_tokens)
    options = {"beam_size": 4, "max_batch_size": int(batch), "max_decoding_length": length}
    options |= {"min_decoding_length": length, "target_prefix": None}
    model.translate_batch(sources[: int(batch)], **options)
    started = time.perf_counter()
    answers = model.translate_batch(sources, **options)
    seconds = time.perf_counter() - started
    num_tokens = sum(len(answer.hypotheses[0]) for answer in answers)
    return {"output_throughput": num_tokens / seconds, "output_tokens": num_tokens, "seconds": seconds}


def xllamacpp(file: str, slots: str, port: str) -> Any:
    """llama.cpp's server out of the wheel, until it is ended."""
    import xllamacpp as wheel

    params = wheel.CommonParams()
    params.model.path, params.model_alias = file, {"model"}
    params.port, params.n_parallel, params.n_ctx = int(port), int(slots), 1024 * int(slots)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.cache_ram_mib, params.endpoint_metrics = 0, True
    server = wheel.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    jobs = {job.__name__: job for job in (generate, encode, make_bart, beams, xllamacpp)}
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
