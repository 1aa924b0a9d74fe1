"""The one training loop: step, accumulate, clip, average, evaluate, save, and go on exactly after a kill.

Steps are the clock. Everything that one step needs follows from its number (data, augmentation, dropout, learning rate:
see feeding, seeding, optim) or stands in the saved state, so a run that is killed at any moment and started again ends
with bitwise the weights of an undisturbed one on the same device. Tested on the CPU; on a GPU some of torch's backward
passes add up in no fixed order, and nothing here forbids them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kappaseg_core.checkpoint import RunDirectory, State, Summary, load_weights, save_weights
from kappaseg_core.compiling import compile_parts
from kappaseg_core.config import LoopConfig, OptimConfig
from kappaseg_core.errors import UserError
from kappaseg_core.optim import build_optimizer, clip_gradients, set_rate
from kappaseg_core.placement import Placement
from kappaseg_core.progress import Meter, memory_mib, say
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import Batch


class Task(Protocol):
    """What is learnt: a module whose forward gives the loss of a batch.

    model: the network that is saved, averaged and evaluated.
    forward(batch) → (loss, numbers): a scalar, and detached scalars to log (means over the batch).
    """

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]: ...


#: network → flat numbers; called in evaluation mode, on every worker alike
Evaluate = Callable[[nn.Module], dict[str, float]]


def fit(
    task: Task,
    feed: Callable[[int], Iterator[Batch]],
    evaluate: Evaluate,
    *,
    optim: OptimConfig,
    loop: LoopConfig,
    run: RunDirectory,
    place: Placement,
    metric: str,
    spent_seconds: float = 0.0,
) -> Summary:
    """Train until `loop.steps` or until more than `loop.patience` evaluations in a row brought no better `metric`
    (higher is better).

    feed: first step → micro-batches from there on.   metric: key of what `evaluate` gives; decides early stopping, and
    with `loop.patience` the best evaluated weights are the run's result, otherwise the last.
    spent_seconds: time that preparing this run took, counted into the summary. A complete run is not done again.
    """
    if run.is_complete:
        run.clean()
        return run.summary()
    if optim.selected_rows and place.world > 1:
        raise UserError(f"optim.selected_rows = true is for one process, found {place.world} workers; set it false")
    trainer = Trainer(task, optim, loop, run, place, metric)
    trainer.resume()
    trainer.numbers["seconds"] += spent_seconds
    trainer.train(feed, evaluate)
    return trainer.finish()


class Trainer:
    """The state of one run in progress."""

    def __init__(
        self, task: Task, optim: OptimConfig, loop: LoopConfig, run: RunDirectory, place: Placement, metric: str
    ) -> None:
        self.task, self.optim, self.loop, self.run, self.place, self.metric = task, optim, loop, run, place, metric
        assert isinstance(task, nn.Module)
        task.to(place.device)
        groups = task.parameter_groups(optim)
        self.trained = [p for group in groups for p in group["params"]]
        if len(self.trained) != sum(p.requires_grad for p in task.parameters()):
            raise AssertionError("parameter groups do not add up to the trainable parameters")
        self.optimizer = build_optimizer(groups, optim)
        self.ema = ModelEmaV3(task.model, decay=loop.ema, use_warmup=True) if loop.ema else None
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.precision == "fp16")
        if loop.compile:
            compile_parts(task.model)  # after the copy for averaging, before the workers are joined
        self.wrapped = place.wrap(task)
        self.step = 0
        self.window: dict[str, Tensor] = {}  # sum and number of steps since the last logged one
        self.numbers: dict[str, Any] = {
            "seconds": 0.0,
            "memory": 0,
            "best": None,
            "best_step": 0,
            "waited": 0,
            "last": {},
        }
        self.started = time.perf_counter()
        if place.is_first:
            for group in self.optimizer.param_groups:
                count = sum(p.numel() for p in group["params"])
                factor, decay = group["lr_factor"], group["weight_decay"]
                run.log(f"{group['name']}: {count:,} parameters, lr × {factor:g}, decay {decay:g}")

    @property
    def result(self) -> nn.Module:
        """The network that is evaluated and kept: the averaged one where there is one."""
        return self.ema.module if self.ema else self.task.model

    def train(self, feed: Callable[[int], Iterator[Batch]], evaluate: Evaluate) -> None:
        if self.step >= self.loop.steps or self.stopped():
            return
        stream = feed(self.step)
        with Meter(f"training {self.run.path.name}", self.loop.steps, done=self.step) as meter:
            while self.step < self.loop.steps:
                self.train_step(stream)
                meter.advance(note=self.note())
                if self.due(self.loop.eval_every) or self.step == self.loop.steps:
                    self.evaluate(evaluate)
                    if self.stopped():
                        break
                if self.due(self.loop.save_every):
                    self.save()

    def due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def train_step(self, stream: Iterator[Batch]) -> None:
        assert isinstance(self.wrapped, nn.Module)
        self.wrapped.train()
        share = set_rate(self.optimizer, self.optim, self.step, self.loop.steps)
        self.optimizer.zero_grad(set_to_none=True)
        numbers: dict[str, Tensor] = {}
        for micro in range(self.loop.accumulate):
            batch = next(stream).to(self.place.device)
            # after the batch, because a loader may draw from the same generator when it starts
            torch.manual_seed(seed_of(self.loop.seed, "step", self.step, micro, self.place.worker))
            with self.place.autocast():
                loss, logged = self.wrapped(batch)
            self.scaler.scale(loss / self.loop.accumulate).backward()
            for name, value in {"loss": loss.detach(), **logged}.items():
                numbers[name] = numbers.get(name, 0.0) + value.double().cpu() / self.loop.accumulate
        self.scaler.unscale_(self.optimizer)
        numbers["gradient_norm"] = torch.tensor(clip_gradients(self.trained, self.optim), dtype=torch.float64)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.ema:
            self.ema.update(self.task.model, step=self.step)
        for name, value in numbers.items():  # a sum, and of how many steps: some numbers begin later than others
            self.window[name] = self.window.get(name, 0.0) + torch.stack([value, torch.ones_like(value)])
        if self.due(self.loop.log_every) or self.step == self.loop.steps:
            self.write_window(share)

    def write_window(self, learning_rate: float) -> None:
        """Log the means since the last logged step, over all workers."""
        names = sorted(self.window, key=lambda name: (name != "loss", name))
        sums = {name: self.place.total(self.window[name].to(self.place.device)).tolist() for name in names}
        self.window = {}
        means = {name: total / steps for name, (total, steps) in sums.items()}
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss is {means['loss']} before step {self.step} of {self.run.path}; "
                "lower optim.lr or use loop.precision fp32"
            )
        self.numbers["last"] = means
        if self.place.is_first:
            self.run.add_metrics({"step": self.step, "kind": "train", "lr": learning_rate, **means})

    def note(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.numbers["last"].items())

    def evaluate(self, evaluate: Evaluate) -> None:
        """Evaluate the result so far; remember whether it is the best."""
        network = self.result.eval()
        self.place.share_buffers(network)  # all judge the network that the first one keeps
        values = evaluate(network)
        value, best = values[self.metric], self.numbers["best"]
        better = best is None or value > best
        self.numbers.update(evaluation=values, waited=0 if better else self.numbers["waited"] + 1)
        if better:
            self.numbers.update(best=value, best_step=self.step, best_evaluation=values)
        if not self.place.is_first:
            return
        self.run.add_metrics({"step": self.step, "kind": "val", **values})
        shown = f"step {self.step}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        self.run.log(shown)
        say(f"{self.run.path.name}  {shown}")
        if better and self.loop.patience is not None:
            save_weights(network, self.run.path / "best.safetensors")

    def stopped(self) -> bool:
        """Whether patience has run out; the first worker decides for all, so that nobody waits for one that left."""
        return self.place.agree(self.loop.patience is not None and self.numbers["waited"] > self.loop.patience)

    def save(self) -> None:
        if not self.place.is_first:
            return
        parts = {"model": self.task.model.state_dict(), "ema": self.ema.module.state_dict() if self.ema else {}}
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if value is not None:
                    tensors[f"optim/{index}/{name}"] = torch.as_tensor(value)
        for name, value in self.window.items():
            tensors[f"window/{name}"] = value
        self.run.save_state(
            State(self.step, tensors, {**self.numbers, **self.spent(), "scaler": self.scaler.state_dict()})
        )

    def spent(self) -> dict[str, Any]:
        return {
            "seconds": self.numbers["seconds"] + time.perf_counter() - self.started,
            "memory": max(self.numbers["memory"], memory_mib()),
        }

    def resume(self) -> None:
        state = self.run.load_state()
        if self.place.is_first:
            self.run.keep_metrics_until(state.step if state else 0)
        if state is None:
            return
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "window": {}}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.tensors.items():
            part, rest = name.split("/", 1)
            if part == "optim":
                index, key = rest.split("/", 1)
                moments.setdefault(int(index), {})[key] = tensor
            else:
                parts[part][rest] = tensor
        self.task.model.load_state_dict(parts["model"])
        if self.ema:
            self.ema.module.load_state_dict(parts["ema"])
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.window, self.step = parts["window"], state.step
        self.scaler.load_state_dict(state.numbers.pop("scaler"))
        self.numbers = state.numbers
        if self.place.is_first:
            self.run.log(f"continuing at step {self.step}")
            say(f"{self.run.path.name}: continuing at step {self.step}")

    def finish(self) -> Summary:
        network = self.result
        if self.loop.patience is not None and self.place.is_first:
            load_weights(network, self.run.path / "best.safetensors")
        spent = self.spent()
        parameters = sum(p.numel() for p in network.parameters())
        stopping_early = self.loop.patience is not None
        kept = "best_evaluation" if stopping_early else "evaluation"
        summary = Summary(
            run=str(self.run.path), steps=self.step, seconds=round(spent["seconds"], 2),
            peak_memory_mib=spent["memory"], metrics=self.numbers[kept],
            best_step=self.numbers["best_step"] if stopping_early else self.step,
            parameters=parameters, trained_parameters=sum(p.numel() for p in self.trained),
        )  # fmt: skip
        if self.place.is_first:
            self.run.finish(network, summary)
            self.run.clean()
        self.place.wait()
        return summary
