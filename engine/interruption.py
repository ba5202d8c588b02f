"""Ctrl-C and SIGTERM as a flag, so that a run stops between two steps."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Interrupt:
    """Ctrl-C and SIGTERM as a flag to ask for between steps; a second one stops at once
    (KeyboardInterrupt).

        with Interrupt() as stop:
            for state in steps:
                save(state)
                if stop: break

    Attributes: requested; signal_name ("SIGINT", "SIGTERM" or None). Outside the main thread it
    never fires.
    """

    def __init__(
        self, signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    ) -> None:
        self._signals = signals
        self._previous: dict[signal.Signals, Any] = {}
        self.requested = False
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt(f"second signal {signal.Signals(number).name}")
        self.requested, self.signal_name = True, signal.Signals(number).name
        # not logging: its locks may be held by the code that was interrupted
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._handle) for number in self._signals
            }
        else:
            log.info("not in the main thread: signals are not caught here")
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
