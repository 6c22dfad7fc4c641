"""Events of TRL's trainer → reported steps, complete checkpoints, held-out losses, a stop after the current step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from train.engines import Job, Step
from train.engines.batch_probe import peak_memory
from train.engines.distributed import all_reduce_sum, rank, world_size
from train.engines.evaluation import held_out_loss, keep_best
from train.model.checkpoints import mark_complete

logger = logging.getLogger(__name__)

BEST = "best"


class TrainingCallback(TrainerCallback):  # type: ignore[misc]
    """Reports every step, marks checkpoints as complete, computes held-out losses, and stops the trainer on request.

    `tokens` is the number of tokens in an epoch; `save(folder)` writes the adapter; `log` is set to the trainer's.
    """

    def __init__(self, job: Job, tokens: int, save: Callable[[Path], None]) -> None:
        self.job, self.tokens, self.save = job, tokens, save
        self.started = self.epoch = 0.0
        self.first_step = 0
        self.model: Any = None
        self.log: Callable[[dict[str, float]], None] = lambda _: None
        self.evaluations = dict(job.evaluations)
        self.stop_requested = self.stopped = False

    @property
    def best(self) -> Path:
        """The folder of the adapter with the lowest held-out loss."""
        return self.job.checkpoints.parent / BEST

    def on_train_begin(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        """Start the clock, which excludes loading and earlier processes."""
        self.started, self.epoch, self.first_step = time.monotonic(), state.epoch or 0.0, state.global_step
        self.model = model

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compute the held-out loss if it is due, and stop the trainer if that loss or a signal requires it.

        The last step gets no checkpoint: resuming from it would train one step more.
        """
        self._evaluate(state, control)
        if state.global_step >= state.max_steps or control.should_training_stop:
            control.should_save = False
        elif self._should_stop():
            self.stopped = control.should_save = control.should_training_stop = True

    def request_stop(self) -> None:
        """Stop after the current step with a checkpoint. A second call raises KeyboardInterrupt."""
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        logger.info("Stopping after this step with a checkpoint. Press Ctrl-C again to stop immediately.")

    def _should_stop(self) -> bool:
        """Whether any process was asked to stop: all of them must stop after the same step."""
        requested = self.stop_requested or self.job.should_stop()
        if world_size() == 1:
            return requested
        return all_reduce_sum([float(requested)], next(self.model.parameters()).device)[0] > 0

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, float], **_: Any) -> None:
        """Report the step, from the first process."""
        if "loss" not in logs or rank():
            return
        seconds, done = time.monotonic() - self.started, max(1, state.global_step - self.first_step)
        self.job.report(
            Step(
                step=state.global_step,
                steps=state.max_steps,
                loss=float(logs["loss"]),
                learning_rate=float(logs["learning_rate"]),
                gradient_norm=float(logs.get("grad_norm", 0.0)),
                tokens=round(self.tokens * (state.epoch - self.epoch)),
                seconds=seconds,
                left=seconds / done * (state.max_steps - state.global_step),
                memory=peak_memory(),
                eval_loss=self.evaluations.get(state.global_step),
            )
        )

    def _evaluate(self, state: Any, control: Any) -> None:
        """Compute the held-out loss if it is due, keep the best adapter, and stop after `patience` without a better."""
        every = self.job.recipe.eval_every
        if every is None or state.global_step % every or self.job.held_out.is_empty():
            return
        before = time.monotonic()
        loss = held_out_loss(self.model, self.job.held_out)
        if loss < min(self.evaluations.values(), default=float("inf")):
            keep_best(self.save, self.best, state.global_step, loss)
        self.evaluations[state.global_step] = loss
        control.should_training_stop = control.should_training_stop or self._is_stuck()
        self.log({"eval_loss": loss})
        control.should_log = True  # the call above reset it, and the step itself is not logged yet
        self.started += time.monotonic() - before  # speed counts training only

    def _is_stuck(self) -> bool:
        patience, losses = self.job.recipe.patience, list(self.evaluations.values())
        return patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Mark the checkpoint as complete once every process has written its files."""
        if world_size() > 1:
            torch.distributed.barrier()
        if rank() == 0:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
