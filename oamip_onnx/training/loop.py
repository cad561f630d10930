"""The loop: epochs of a one-cycle schedule, judged on held-out samples, of which the best weights are returned."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from oamip_onnx.progress import Progress, Step
from oamip_onnx.training.checkpoint import read_checkpoint, save_checkpoint
from oamip_onnx.training.data import Data
from oamip_onnx.training.epochs import Epoch, Outcome, is_better
from oamip_onnx.training.interpreter import Network
from oamip_onnx.training.losses import Objective, hits
from oamip_onnx.training.settings import FinetuneSettings

_LOG = logging.getLogger(__name__)

# Share of the steps over which the learning rate rises, and what share of its largest it starts and ends with.
_RISE, _FIRST, _LAST = 0.2, 0.1, 0.001

_MOMENTUM = 0.9

# Samples of one step of an evaluation: nothing is kept for gradients there.
_EVALUATION_BATCH = 256

# Samples that the statistics of batch normalisations are taken of anew.
_STATISTICS_SAMPLES = 4096

# A loss that is not finite never becomes finite again; asking after every step would make a GPU wait.
_STEPS_BETWEEN_CHECKS = 20


def one_cycle(step: int, steps: int, largest: float) -> float:
    """Return the learning rate of a step: half a cosine up, half a cosine down.

    Parameters
    ----------
    step, steps
        Number of the step, from 0, and how many there are.
    largest
        The largest learning rate.
    """
    rise = _RISE * steps
    if step < rise:
        return largest * (_FIRST + (1 - _FIRST) * (1 - math.cos(math.pi * step / rise)) / 2)
    share = (step - rise) / max(steps - rise, 1.0)
    return largest * (_LAST + (1 - _LAST) * (1 + math.cos(math.pi * share)) / 2)


def bears_mixed_precision(device: torch.device) -> bool:
    """Return whether a device gains from computing in bfloat16 what loses nothing by it."""
    return device.type == "cuda" and bool(torch.cuda.is_bf16_supported())


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Let PyTorch compute the same in every run on a CPU, with so many threads; 0 leaves their number alone."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled, count = torch.utils.deterministic.fill_uninitialized_memory, torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.set_num_threads(count)


class Trainer:
    """Trains a network; afterwards it holds the best weights that were met, the first ones included.

    Parameters
    ----------
    network
        The network, which returns what the objective reads.
    objective
        The loss.
    data
        Samples in two parts.
    settings
        The settings.
    folder, run
        Where the state goes after every epoch, and what it is the state of; None for nowhere.
    """

    def __init__(
        self,
        network: Network,
        objective: Objective,
        data: Data,
        settings: FinetuneSettings,
        folder: Path | None = None,
        run: str = "",
    ) -> None:
        self.network, self.objective, self.data, self.settings = network, objective, data, settings
        self._folder, self._run = folder, run
        weights = list(network.weights.values())
        groups = [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        rate = settings.largest_rate
        if settings.optimiser == "adamw":
            self._optimiser: Any = torch.optim.AdamW(groups, lr=rate, fused=True)
        else:
            self._optimiser = torch.optim.SGD(groups, lr=rate, momentum=_MOMENTUM, nesterov=True, fused=True)
        self._mixed = settings.mixed_precision and bears_mixed_precision(network.device)
        self._best: dict[str, Any] = {}
        self.outcome = Outcome()

    def fit(self, progress: Progress) -> Outcome:
        """Train, and return how it went.

        Raises
        ------
        OutputError, UsageError
            If a checkpoint cannot be written, or is of another run.
        """
        outcome, settings = self.outcome, self.settings
        if not self._resume():
            began = time.perf_counter()
            loss, metric = self.evaluate()
            self._note(Epoch(0, None, loss, metric, _since(began)))
        while not outcome.stopped:
            number = len(outcome.epochs)
            if number > settings.epochs:
                outcome.stopped = "finished"
                break
            self._epoch(number, progress)
            if self._folder is not None:
                save_checkpoint(self._state(), self._folder)
        self._load(self._best)
        return outcome

    def _epoch(self, number: int, progress: Progress) -> None:
        began, outcome = time.perf_counter(), self.outcome
        training_loss = self._train(number, progress)
        if math.isfinite(training_loss):
            if self.settings.batch_norm == "re-estimate" and self.network.statistics:
                self.estimate_statistics()
            loss, metric = self.evaluate()
        else:
            loss, metric = math.nan, math.nan
            outcome.stopped = "diverged"
        self._note(Epoch(number, training_loss, loss, metric, _since(began)))
        if not outcome.stopped and number - outcome.best >= self.settings.patience and number < self.settings.epochs:
            outcome.stopped = "patience"

    def _note(self, epoch: Epoch) -> None:
        outcome = self.outcome
        outcome.epochs.append(epoch)
        if epoch.number == 0 or is_better(outcome.epochs, outcome.best, len(self.data.held_out)):
            outcome.best, self._best = epoch.number, self._weights()
        _LOG.info("epoch %d: held-out loss %.4g, metric %.4f", epoch.number, epoch.loss, epoch.metric)

    def _train(self, number: int, progress: Progress) -> float:
        """Run the steps of an epoch; return the mean loss, not finite as soon as it was so once."""
        settings, last = self.settings, self.outcome.epochs[-1]
        order = self.data.epoch(settings.seed, number, settings.batch_size)
        steps, task = len(order), f"epoch {number} of {settings.epochs}"
        task += f", held-out metric {last.metric:.4f}, loss {last.loss:.4g}"
        weights = list(self.network.weights.values())
        self.network.mode.batch_statistics = settings.batch_norm != "frozen"
        total = torch.zeros((), device=self.network.device)
        for step, rows in enumerate(order):
            rate = one_cycle((number - 1) * steps + step, settings.epochs * steps, settings.largest_rate)
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            batch = self.data.batch(self.network, rows)
            with torch.autocast(self.network.device.type, torch.bfloat16) if self._mixed else nullcontext():
                loss = self.objective(self.network(batch.feeds), batch.labels, batch.wanted)
            self._optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, settings.clip_norm)
            self._optimiser.step()
            total += loss.detach()
            if step % _STEPS_BETWEEN_CHECKS == 0 and not math.isfinite(total.item()):
                break
            progress(Step(task, float(step + 1), float(steps)))
        self.network.mode.batch_statistics = False
        return float(total.item()) / steps

    @torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore] # torch is not typed here
    def evaluate(self) -> tuple[float, float]:
        """Return loss and metric of the held-out samples."""
        loss, metric, count = 0.0, 0.0, 0
        for batch in self.data.batches(self.network, self.data.held_out, _EVALUATION_BATCH):
            found = self.network(batch.feeds)
            loss += batch.count * self.objective(found, batch.labels, batch.wanted).item()
            main = self.objective.main
            labels = batch.labels if self.objective.logits is not None else None
            metric += hits(found[main], labels, batch.wanted.get(main))
            count += batch.count
        return loss / count, metric / count

    @torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore] # torch is not typed here
    def estimate_statistics(self) -> None:
        """Take the statistics of batch normalisations anew: the mean over batches of training samples."""
        mode, rows = self.network.mode, self.data.train[:_STATISTICS_SAMPLES]
        mode.batch_statistics = True
        step = self.data.samples.run_size or min(_EVALUATION_BATCH, len(rows))
        usable = rows[: len(rows) // step * step]
        for number, batch in enumerate(self.data.batches(self.network, usable, step), start=1):
            mode.momentum = 1 / number
            self.network(batch.feeds)
        mode.batch_statistics, mode.momentum = False, None

    def _weights(self) -> dict[str, Any]:
        tensors = {**self.network.weights, **self.network.statistics}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore] # torch is not typed here
    def _load(self, values: dict[str, Any]) -> None:
        for name, tensor in {**self.network.weights, **self.network.statistics}.items():
            tensor.copy_(values[name])

    def _state(self) -> dict[str, Any]:
        """Return what the next epoch depends on; the order of samples follows from the seed and its number."""
        return {
            "run": self._run,
            "weights": self._weights(),
            "best_weights": self._best,
            "optimiser": self._optimiser.state_dict(),
            "epochs": [asdict(epoch) for epoch in self.outcome.epochs],
            "best": self.outcome.best,
            "stopped": self.outcome.stopped,
        }

    def _resume(self) -> bool:
        state = None if self._folder is None else read_checkpoint(self._folder, self._run)
        if state is None:
            return False
        self._load(state["weights"])
        self._best = {name: tensor.to(self.network.device) for name, tensor in state["best_weights"].items()}
        self._optimiser.load_state_dict(state["optimiser"])
        self.outcome.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.outcome.best, self.outcome.stopped = state["best"], state["stopped"]
        self.outcome.resumed = self.outcome.epochs[-1].number
        return True


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 3)
