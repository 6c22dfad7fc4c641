"""What happens between the steps of a training: they are told, checkpoints marked, losses held out, stops obeyed."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from train.engines import Job, Step
from train.engines.batch_probe import peak_memory
from train.engines.distributed import rank, total, world
from train.engines.evaluation import held_out_loss, keep_best
from train.model.checkpoints import mark_complete

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BEST = "best"


class Watch(TrainerCallback):  # type: ignore[misc]
    """Reports every step, marks whole checkpoints, leaves out the one after the last step, and stops when asked."""

    def __init__(self, job: Job, tokens: int, save: Callable[[Path], None]) -> None:
        self.job, self.tokens, self.save = job, tokens, save
        self.started = self.epoch = 0.0
        self.first_step = 0
        self.model: Any = None
        self.log: Callable[[dict[str, float]], None] = lambda _: None
        self.evaluations = dict(job.evaluations)
        self.asked = self.stopped = False

    @property
    def best(self) -> Path:
        """Where the adapter with the lowest held-out loss lies."""
        return self.job.checkpoints.parent / BEST

    def on_train_begin(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        """The clock starts here: what came before was loading, or another process."""
        self.started, self.epoch, self.first_step = time.monotonic(), state.epoch or 0.0, state.global_step
        self.model = model

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the held-out loss where it is due, and stop where that or a signal says so.

        A checkpoint of the last step is of no use: resuming from it would train one step more.
        """
        self._evaluate(state, control)
        if state.global_step >= state.max_steps or control.should_training_stop:
            control.should_save = False
        elif self._all_asked():
            self.stopped = control.should_save = control.should_training_stop = True

    def _all_asked(self) -> bool:
        """Whether any process was asked to stop: all of them have to, after the same step."""
        asked = self.asked or self.job.asked()
        if world() == 1:
            return asked
        return total([float(asked)], next(self.model.parameters()).device)[0] > 0

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, float], **_: Any) -> None:
        """Tell the caller how far the run is."""
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
        """The held-out loss when it is due; the best adapter is kept, and no progress for `patience` times stops."""
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
        control.should_log = True  # the step's own line is still to come, and logging has just said it was there
        self.started += time.monotonic() - before  # the pace is that of training

    def _is_stuck(self) -> bool:
        patience, losses = self.job.recipe.patience, list(self.evaluations.values())
        return patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """The checkpoint's files are all written: say so, in a file that appears at once or not at all."""
        if world() > 1:
            torch.distributed.barrier()
        if rank() == 0:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


@contextmanager
def stopping_gently(watch: Watch) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM let the step end and be saved; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        if watch.asked:
            raise KeyboardInterrupt
        watch.asked = True
        logger.info("Stopping after this step, with a checkpoint. Once more stops at once.")

    before = [(number, signal.signal(number, ask)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
