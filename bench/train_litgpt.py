"""One job of litgpt's pre-training on token rows, as ``litgpt pretrain`` runs it.

    .bench/train/venv/bin/python bench/train_litgpt.py SETTINGS.json

Called by bench/train.py in the peers' environment. litgpt's own ``setup`` does everything; what is put in its place are
the initial weights and the final file (Hugging Face names, so that all systems start alike and are judged alike), and
a data module with the given rows. A step ends when the next batch is asked for. Knows no danlu.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litgpt.pretrain as pretrain
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.scripts.convert_lit_checkpoint import copy_weights_llama
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from train_clock import Job, read_job, row_order


class Rows(Dataset):  # type: ignore[type-arg]
    """Rows of a token file and one label that does not count: the same predictions as in the other systems."""

    def __init__(self, job: Job) -> None:
        self.ids = torch.from_file(job["tokens"], dtype=torch.uint16, size=Path(job["tokens"]).stat().st_size // 2)
        self.size = job["row_tokens"]
        self.order = row_order(job)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> torch.Tensor:
        row = self.order[index]
        ids = self.ids[row * self.size : (row + 1) * self.size].long()
        return torch.cat([ids, torch.tensor([-100])])


class Stamped:
    """Row numbers of each micro-batch; tells the clock when a step's last one is done."""

    def __init__(self, job: Job, micro: int, num_rows: int) -> None:
        self.job, self.micro, self.num_rows = job, micro, num_rows

    def __len__(self) -> int:
        return self.num_rows // self.micro

    def __iter__(self) -> Iterator[list[int]]:
        job, micro = self.job, self.micro
        job.begin()
        for number in range(len(self)):
            if number and number * micro % job["rows_per_step"] == 0:
                job.step()
            yield list(range(number * micro, (number + 1) * micro))


class Data(DataModule):
    """The data module litgpt asks for."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self.micro = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        rows = Rows(self.job)
        return DataLoader(rows, batch_sampler=Stamped(self.job, self.micro, len(rows)))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Rows(self.job), batch_size=self.micro)


def main() -> int:
    job = read_job()
    theirs = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8"))
    config = Config(
        name="bench", hf_config={}, block_size=theirs["max_position_embeddings"], vocab_size=theirs["vocab_size"],
        padded_vocab_size=theirs["vocab_size"], n_layer=theirs["num_hidden_layers"],
        n_head=theirs["num_attention_heads"], n_embd=theirs["hidden_size"],
        n_query_groups=theirs["num_key_value_heads"], intermediate_size=theirs["intermediate_size"],
        rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP", norm_eps=theirs["rms_norm_eps"], rope_base=10000,
    )  # fmt: skip
    losses: list[float] = []
    replace_ends(job, config, losses)
    micro = job.get("micro_batch_size", 4)
    train = TrainArgs(
        save_interval=None, log_interval=1, global_batch_size=job["rows_per_step"], micro_batch_size=micro,
        max_tokens=job["steps"] * job["rows_per_step"] * job["row_tokens"], max_norm=job["clip_norm"],
        min_lr=job.get("min_learning_rate", job["learning_rate"]), lr_warmup_steps=job.get("warmup_steps", 0),
        tie_embeddings=True, max_seq_length=job["row_tokens"],
    )  # fmt: skip
    init = {"lr": job["learning_rate"], "betas": job["betas"], "weight_decay": job["weight_decay"]}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": init}
    pretrain.setup(
        model_name="bench", model_config=config, out_dir=job.out / "litgpt", precision=job.get("precision"),
        data=Data(job), train=train, eval=EvalArgs(interval=10**9, final_validation=False), optimizer=optimizer,
        devices=1, logger_name="csv", seed=job["seed"],
    )  # fmt: skip
    parts = job["rows_per_step"] // micro
    step_losses = [sum(losses[i : i + parts]) / parts for i in range(0, job["steps"] * parts, parts)]
    job.tokens = [job["rows_per_step"] * job["row_tokens"]] * job["steps"]
    job.supervised = [job["rows_per_step"] * (job["row_tokens"] - 1)] * job["steps"]
    resolved = {"train": vars(train), "optimizer": optimizer, "settings": job.settings}
    resolved["precision"] = job.get("precision") or pretrain.get_default_supported_precision(training=True)
    job.finish(losses=step_losses, saved=str(job.out / "saved"), resolved=resolved)
    return 0


def replace_ends(job: Job, config: Config, losses: list[float]) -> None:
    """Given weights in, safetensors out, and the training losses kept."""
    plain_loss = pretrain.chunked_cross_entropy

    def initialize(fabric: Any, model: Any, **_: Any) -> None:
        weights: dict[str, torch.Tensor] = {}
        copy_weights_hf_llama(config, {}, weights, load_file(Path(job["model"]) / "model.safetensors"))
        model.load_state_dict(weights, assign=False)

    def loss(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        value = plain_loss(logits, targets, **options)
        if torch.is_grad_enabled() and value.device.type == "cpu":
            losses.append(float(value.detach()))
        return value

    def save(fabric: Any, state: dict[str, Any], tokenizer_dir: Any, path: Path) -> None:
        model = state["model"]
        plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
        weights: dict[str, torch.Tensor] = {}
        copy_weights_llama(config, weights, plain, untie_weights=True)
        (job.out / "saved").mkdir(exist_ok=True)
        save_file(
            {name: t.contiguous().clone() for name, t in weights.items()}, job.out / "saved" / "model.safetensors"
        )
        shutil.copy(Path(job["model"]) / "config.json", job.out / "saved")

    pretrain.initialize_weights = initialize
    pretrain.chunked_cross_entropy = loss
    pretrain.save_checkpoint = save


if __name__ == "__main__":
    sys.exit(main())
