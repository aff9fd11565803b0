"""Ctrl-C and SIGTERM end a run after the optimiser step that it is in, with a checkpoint to go on from."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from ..errors import StoppedBySignal
from ..runs.output import is_first_process

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The terminal sends Ctrl-C to torchrun and to its processes, and torchrun sends it on to them.
_SAME = 1.0
_NOTICE = b"\ntdpo: stopping after this step, with a checkpoint; Ctrl-C again stops at once\n"


class Stopping(TrainerCallback):
    """Takes the signals of a run; add it after the callbacks that decide on saving."""

    def __init__(self) -> None:
        self._received = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self.signal: int | None = None
        """The signal that ended the run in all its processes, or None."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In the block, the first signal asks for the end and a second one is what it was before.

        Only the main thread is told of signals: in any other, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {number: signal.signal(number, self._take) for number in _SIGNALS}
        try:
            yield
        finally:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _take(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a data loader's worker, forked with this handler: the run's own process ends it
        if not self._received:
            self._received, self._since = number, time.monotonic()
            if is_first_process():
                os.write(2, _NOTICE)  # print may be what was interrupted
        elif time.monotonic() - self._since > _SAME:
            self._restore()
            signal.raise_signal(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """An optimiser step is done: end here if any process was asked to."""
        received = self._received
        if args.world_size > 1:
            everywhere = torch.tensor(received, device=args.device)
            torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MAX)
            received = int(everywhere)
        # After the last step there is nothing to go on with.
        if received and state.global_step < state.max_steps:
            self.signal = received
            control.should_training_stop = control.should_save = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Trainer ends a run as it ends an epoch: in the middle of one, what is due at its end is not."""
        if self.signal is not None and state.epoch % 1:
            control.should_save = control.should_evaluate = control.should_log = False
        return control

    def raise_if_stopped(self, trainer: Any) -> None:
        """End the command if a signal ended the run of ``trainer``.

        Raises:
            StoppedBySignal: says how to go on.
        """
        if self.signal is None:
            return
        # A launcher ends every process as soon as one has ended, and each has its part to write.
        trainer.accelerator.wait_for_everyone()
        step, last = trainer.state.global_step, trainer.state.max_steps
        raise StoppedBySignal(
            f"stopped by {'Ctrl-C' if self.signal == signal.SIGINT else 'SIGTERM'} after step {step:,} of "
            f"{last:,}; {trainer.args.output_dir}/checkpoint-{step} is saved, and the same command with "
            "--resume goes on from it",
            self.signal,
        )
