"""How long each stage takes, where stages may call each other."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class StageClock:
    """Seconds by stage. The time of a stage that is called from another one counts for the inner one alone.

    One thread on a CPU is timed by what the processor spent on it, which a busy machine hardly changes.

    Args:
        device: whose queue is emptied at every change of stage, so that work counts in the stage that started it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        is_one_thread = device.type == "cpu" and torch.get_num_threads() == 1
        self._now = time.process_time if is_one_thread else time.perf_counter
        self.seconds: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside for ``name``."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """Interrupt the stage under way, if there is one."""
        self._book()
        self._open.append(name)

    def end(self) -> None:
        """Go on with the stage that was interrupted, if there is one."""
        self._book()
        self._open.pop()

    def watch(self, module: nn.Module, name: str) -> None:
        """Count every forward pass of a module for ``name``."""
        module.register_forward_pre_hook(lambda *_: self.begin(name))
        module.register_forward_hook(lambda *_: self.end())

    def _book(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = self._now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
