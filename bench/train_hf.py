"""One job of HF Trainer (with PEFT) or TRL's SFTTrainer: LoRA on conversations, or pre-training on token rows.

    .bench/train/venv/bin/python bench/train_hf.py SETTINGS.json

Called by bench/train.py in the peers' environment; knows no danlu. ``flags`` of the settings go to TrainingArguments
(or SFTConfig) as they are, over nothing but what all systems share: learning rate, schedule, clipping, rows a step,
their order and the number of steps. ``collator`` is ``pad`` (to the longest of the batch) or ``flat`` (rows end to end,
positions restart), ``dtype`` the number type the base is loaded in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig, get_peft_model
from train_clock import Job, read_job, row_order
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Stamps(TrainerCallback):
    """The outer clock: the start, every step's end, its loss as the trainer logs it, and snapshots."""

    def __init__(self, job: Job, save: Any) -> None:
        self.job, self.save, self.losses = job, save, list[float]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.job.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.job.step()
        if self.job.wants_snapshot():
            self.job.snapshot(self.save)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


class Counting:
    """A collator that counts what is not padding, batch after batch."""

    def __init__(self, job: Job, inner: Any) -> None:
        self.job, self.inner = job, inner

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        self.job.tokens.append(sum(len(feature["input_ids"]) for feature in features))
        self.job.supervised.append(sum(int((torch.as_tensor(f["labels"])[1:] != -100).sum()) for f in features))
        return self.inner(features)


def main() -> int:
    job = read_job()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.manual_seed(job["seed"])
    trainer, save = {"lora": lora, "trl": trl_lora, "pretrain": pretrain}[job["track"]](job)
    stamps = Stamps(job, save)
    trainer.add_callback(stamps)
    trainer.train()
    save(job.out / "saved")
    steps = len(job.stamps_s)
    job.tokens, job.supervised = job.tokens[:steps], job.supervised[:steps]
    resolved = {"arguments": json.loads(trainer.args.to_json_string()), "settings": job.settings}
    resolved["attention"] = trainer.model.config._attn_implementation
    job.finish(losses=stamps.losses, saved=str(job.out / "saved"), resolved=resolved)
    return 0


def shared(job: Job) -> dict[str, Any]:
    """What every system is given alike; flags come on top."""
    values: dict[str, Any] = {
        "output_dir": str(job.out / "hf"),
        "use_cpu": True,
        "per_device_train_batch_size": job["rows_per_step"],
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": job.get("schedule", "constant"),
        "lr_scheduler_kwargs": job.get("schedule_kwargs"),
        "warmup_steps": job.get("warmup_steps", 0),
        "adam_beta1": job["betas"][0],
        "adam_beta2": job["betas"][1],
        "weight_decay": job["weight_decay"],
        "max_grad_norm": job["clip_norm"],
        "train_sampling_strategy": "sequential",
        "seed": job["seed"],
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return {**values, **job.get("flags", {})}


def chat_rows(job: Job) -> datasets.Dataset:
    """As many rows as the run has steps for, so that a sampler of lengths takes the same ones."""
    rows = json.loads(Path(job["rows"]).read_text(encoding="utf-8"))["train"][: job["steps"] * job["rows_per_step"]]
    labels = [[i if a else -100 for i, a in zip(row["ids"], row["is_answer"], strict=True)] for row in rows]
    return datasets.Dataset.from_dict({"input_ids": [row["ids"] for row in rows], "labels": labels})


def adapter(job: Job) -> LoraConfig:
    """On every linear but the head."""
    return LoraConfig(
        r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def lora(job: Job) -> tuple[Trainer, Any]:
    """Trainer on a PEFT model."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job.get("dtype", "float32")))
    model = get_peft_model(model, adapter(job))
    flat = job.get("collator", "pad") == "flat"
    inner = DataCollatorWithFlattening() if flat else DataCollatorForSeq2Seq(tokenizer, padding=True)
    trainer = Trainer(
        model=model, args=TrainingArguments(**shared(job)), train_dataset=chat_rows(job),
        data_collator=Counting(job, inner), processing_class=tokenizer,
    )  # fmt: skip
    return trainer, model.save_pretrained


def trl_lora(job: Job) -> tuple[Trainer, Any]:
    """TRL's SFTTrainer with the same adapter."""
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=job["model"],
        args=SFTConfig(**shared(job), model_init_kwargs={"dtype": job.get("dtype", "float32")}),
        train_dataset=chat_rows(job),
        peft_config=adapter(job),
    )
    trainer.data_collator = Counting(job, trainer.data_collator)
    return trainer, trainer.model.save_pretrained


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Rows of a uint16 token file in a given order, again from the start when they are over."""

    def __init__(self, job: Job) -> None:
        self.ids = torch.from_file(job["tokens"], dtype=torch.uint16, size=Path(job["tokens"]).stat().st_size // 2)
        self.size = job["row_tokens"]
        self.order = row_order(job)
        self.count = job["steps"] * job["rows_per_step"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.order[index % len(self.order)]
        ids = self.ids[row * self.size : (row + 1) * self.size].long()
        return {"input_ids": ids, "labels": ids}


def pretrain(job: Job) -> tuple[Trainer, Any]:
    """Trainer on a Llama from given weights."""
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    trainer = Trainer(
        model=model, args=TrainingArguments(**shared(job)), train_dataset=Rows(job),
        data_collator=Counting(job, transformers.default_data_collator),
    )  # fmt: skip
    return trainer, model.save_pretrained


if __name__ == "__main__":
    sys.exit(main())
