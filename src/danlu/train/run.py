"""What every training loop needs around it: steps that resume, count, skip and save. Knows no method and no data.

A stage owns its loop and says what a loss is:

    with TrainingRun(model, parameters, config, batches, job) as run:
        for step in run.steps():
            step.accumulate(loss_of)          # forward and backward, micro-batch after micro-batch
            step.update()                     # one move of the optimiser, with the global mean
            if step.validates:
                with step.validating():
                    step.report(validate())

Everything random in a step comes from the seed, the step and the rank, and which rows it sees is a function of the
step: a run that was killed ends with the same weights.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from danlu.core.events import Bar
from danlu.core.memory import keep_freed_memory, release_memory
from danlu.models.model import Model
from danlu.train.average import WeightAverage
from danlu.train.batches import Batches
from danlu.train.checkpoint import load_together, save_together
from danlu.train.curve import CurveLog
from danlu.train.interrupts import HeldBack
from danlu.train.optim import NamedOptimizer, make_optimizer, settle_name
from danlu.train.pace import Pace, peak_rss_bytes
from danlu.train.parallel import spread
from danlu.train.progress import Progress, RecentLosses
from danlu.train.remat import checkpoint_blocks
from danlu.train.roles import Roles, roles_of
from danlu.train.samples import Samples
from danlu.train.settings import Job, RunConfig, count_steps, settle
from danlu.train.step import Step, Summed
from danlu.train.watch import WATCH, Watch

__all__ = ["Job", "RunConfig", "Summed", "TrainingRun"]

Item = TypeVar("Item")

RELEASE_EVERY = 4
"""Steps between handing freed memory back: batches differ in size, and the allocator keeps what does not fit again."""
_OPTIMIZER, _AVERAGE = "optimizer.", "average."
"""What names of their state begin with in a checkpoint."""


class TrainingRun(Generic[Item]):
    """A run around a stage's loop: a context manager."""

    def __init__(
        self,
        model: Model,
        parameters: Mapping[str, nn.Parameter],
        config: RunConfig,
        batches: Batches[Item],
        job: Job,
        *,
        rates: Mapping[str, float] | None = None,
        samples: Samples | None = None,
    ) -> None:
        """``parameters`` are those of ``model.network`` that train, by name; ``rates`` factors of their rate;
        ``samples`` are written when it is time to validate."""
        torch.manual_seed(job.seed)  # pyright: ignore[reportUnknownMemberType]
        config = settle(config)
        self.model = model
        self.config = config
        self.job = job
        self.batches = batches
        self.num_steps = count_steps(config, batches.per_epoch)
        roles = roles_of(model.network)
        self.optim, why = settle_name(config.optim, batches.tokens_per_step, _shapes(roles, parameters))
        if config.optim.name == "auto":
            job.events.say(why)
        checkpoint_blocks(model.network, config.recompute)
        self.weights, self.reduction = spread(
            model.network, parameters, model.activation_dtype, job.world, config.parallel
        )
        self.optimizer = make_optimizer(
            self.weights.masters,
            self.optim,
            parts=roles.parts,
            hidden=roles.hidden,
            embeddings=roles.embeddings,
            rates=rates,
        )
        decay = self.optim.ema_decay
        self.average = None if decay is None else WeightAverage(self.weights.masters, decay)
        self.done = Progress()
        self.curve = CurveLog(job.work / "log.jsonl", writes=job.world.is_first)
        named = dict(model.network.named_parameters())
        hidden = {name: named[name] for name in roles.hidden}
        self.pace = Pace(hidden, model.device, model.activation_dtype, self.num_steps)
        self.watch: Watch = WATCH.get()
        self._samples = samples
        self._recent = RecentLosses()
        self.is_between_steps = True
        self._stops = False
        self.interrupts = HeldBack()

    def __enter__(self) -> TrainingRun[Item]:
        self._resume()
        gc.collect()
        keep_freed_memory()
        gc.freeze()  # what is there by now stays: looking through it again for garbage takes longer than many a step
        self._entered = self.job.events.bar("train", total=self.num_steps, unit="step", done=self.done.step)
        self._bar = self._entered.__enter__()
        self.interrupts.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        gc.unfreeze()
        self.interrupts.__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt) and self.is_between_steps:
            self.save()
            self.job.events.say(f"Saved after step {self.done.step}; the same command goes on from there.")
        self._entered.__exit__(kind, error, trace)
        if error is None:
            self._finish()

    def steps(self) -> Iterator[Step[Item]]:
        """The steps that are left."""
        self.model.network.train()
        while self.done.step < self.num_steps and not self._stops:
            self.interrupts.let_through()
            step: Step[Item] = Step(self)
            yield step
            self._write_samples(step)
            if self.done.step % RELEASE_EVERY == 0:
                release_memory()
            if self.done.step % self.config.save_every == 0 or self.done.step == self.num_steps or self._stops:
                self.save()
        self.interrupts.let_through()
        self._settle()

    def _write_samples(self, step: Step[Item]) -> None:
        if self._samples is None or not step.validates:
            return
        if self.job.world.size > 1 and self.config.parallel == "fsdp":
            self.job.events.say("No samples are written: weights are spread over processes (parallel: fsdp).")
            self._samples = None
            return
        with step.validating():
            self._samples.write(self.done.step, self.curve, self.job)

    @property
    def bar(self) -> Bar:
        """The progress bar."""
        return self._bar

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = self._state()
        values = {**vars(self.done), "lines": len(self.curve.lines)}
        save_together(self.job.work, self.done.step, tensors, values, self.job.world)

    def _state(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, not copied."""
        tensors = dict(self.weights.state())
        for prefix, part in self._parts():
            tensors |= {prefix + name: tensor for name, tensor in part.state_tensors().items()}
        return tensors

    def _parts(self) -> list[tuple[str, NamedOptimizer | WeightAverage]]:
        """What has state of its own, and what its names begin with in a checkpoint."""
        return [(_OPTIMIZER, self.optimizer), *([] if self.average is None else [(_AVERAGE, self.average)])]

    def metrics(self) -> dict[str, Any]:
        """What the run came to."""
        losses, validation = self.curve.values("loss"), self.curve.values("validation_loss")
        trained = sum(master.numel() for master in self.weights.masters.values())
        return {
            "steps": self.done.step,
            "last_loss": losses[-1] if losses else None,
            "validation_loss": validation[-1] if validation else None,
            "train_tokens_per_s": round(self.done.tokens / self.done.seconds, 1),
            "first_loss": losses[0] if losses else None,
            "trainable_parameters": trained,
            "best_validation_loss": min(validation) if validation else None,
            "best_step": self.done.best_step,
            "skipped_steps": self.done.skipped,
            "loss_spikes": self.done.spikes,
            "peak_share": round(self.pace.mean_share(self.done.tokens, self.done.seconds), 4),
            "peak_rss_bytes": peak_rss_bytes(),
            "stopped_early": self.done.step < self.num_steps,
        }

    def finish_step(
        self, loss: float, norm: float, rate: float, tokens: int, seconds: float, parts: Mapping[str, float]
    ) -> None:
        """Count one step and write its line."""
        done = self.done
        done.count(tokens, seconds, is_skipped=not math.isfinite(norm))
        if self._recent.is_spike(loss):
            done.spikes += 1
            self.job.events.log("loss spike", step=done.step, loss=loss, usual=self._recent.usual)
        self._recent.extend([loss])
        self.curve.add({"step": done.step, "loss": loss, "lr": rate, "grad_norm": norm, **parts})
        self.is_between_steps = True
        share = self.pace.share_of_peak(tokens, seconds)
        self._bar.advance(1, loss=loss, tokens_per_s=tokens / seconds, grad_norm=norm, peak_share=share)
        plan = self.pace.after_step(tokens, seconds, done.step)
        if plan is not None:
            self.job.events.say(plan)
        self.watch.stepped(self)

    def validated(self, values: Mapping[str, Any]) -> None:
        """Write a validation's line; remember the best; stop when patience is over."""
        done = self.done
        self.curve.add({"step": done.step, **values})
        loss = values["validation_loss"]
        if not math.isfinite(loss):
            return
        if done.is_best(loss):
            if self.config.keep == "best":
                averages = {} if self.average is None else self.average.averages
                tensors = {**self.weights.state(), **averages}
                best = self.job.work / "best"
                save_together(best, done.step, tensors, {"validation_loss": loss}, self.job.world)
            return
        if self.config.patience and done.worse_in_a_row >= self.config.patience and done.step < self.num_steps:
            self._stops = True
            self.job.events.say(
                f"Stopped after step {done.step}: no better validation loss than {done.best_loss:.4f} of step "
                f"{done.best_step} in {done.worse_in_a_row} validations."
            )

    def _resume(self) -> None:
        """Load the newest whole checkpoint, if any."""
        checkpoint = load_together(self.job.work, self.job.world, self._state())
        if checkpoint is None:
            self.curve.truncate(0)
            return
        tensors = checkpoint.tensors
        self.weights.load_state({n: t for n, t in tensors.items() if not n.startswith((_OPTIMIZER, _AVERAGE))})
        for prefix, part in self._parts():
            part.load_state_tensors({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        values = dict(checkpoint.values)
        self.curve.truncate(values.pop("lines"))
        self.done = Progress(**values)
        self._recent.extend(self.curve.values("loss"))
        self._stops = bool(self.config.patience) and self.done.worse_in_a_row >= self.config.patience
        self.job.events.say(f"Going on after step {checkpoint.step}.")

    def _settle(self) -> None:
        """Give the network the weights to keep, ready to be used; several processes must use it together until the
        run ends."""
        self.is_between_steps = False  # what the last step left is saved already, and is not to be saved over
        best = None
        if self.config.keep == "best":
            best = load_together(self.job.work / "best", self.job.world, self.weights.state())
        if best is not None:
            self.weights.load_state(best.tensors)
        elif self.average is not None:
            self.weights.load_state({**self.weights.state(), **self.average.averages})
        self.weights.clear_gradients()
        checkpoint_blocks(self.model.network, "none")
        self.model.network.eval()

    def _finish(self) -> None:
        """Leave the model with the weights to keep, ready to be used and saved."""
        if self.weights.put_back():
            self.model.activation_dtype = torch.float32
        if self.job.world.is_first:
            self.curve.copy_to(self.job.log_path)


def _shapes(roles: Roles, parameters: Mapping[str, nn.Parameter]) -> list[tuple[int, int]]:
    """Shapes of the matrices that Muon would take, one for each projection."""
    return [
        (rows, parameters[name].shape[-1])
        for name in roles.hidden
        if name in parameters
        for rows in roles.parts.get(name, (parameters[name].shape[-2],))
    ]
