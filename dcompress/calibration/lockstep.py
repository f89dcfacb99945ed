"""Run a model on several batches at once, so that all of them stop before the same layer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["Call", "Runner"]


@dataclass(frozen=True, eq=False)
class Call:
    """A layer that a run has come to.

    Attributes
    ----------
    path : str
        Of the layer in the model.
    module : Module
        It.
    arguments : tuple
        Positional and keyword arguments that it is about to be called with.
    """

    path: str
    module: nn.Module
    arguments: tuple[tuple[Any, ...], dict[str, Any]]


class _Stopped(BaseException):
    """Ends a run that nobody waits for any more; no model's own handler may catch it."""


@dataclass(eq=False)
class _Baton:
    """Whose turn it is."""

    mine: threading.Event = field(default_factory=threading.Event)
    yours: threading.Event = field(default_factory=threading.Event)
    stopped: bool = False


class Runner:
    """A run of a model in a thread of its own that stops before some layers.

    Only one thread runs at a time: `proceed` waits until the run has come to a layer, or to its end.

    Parameters
    ----------
    run : callable
        Runs the model on a batch.
    stops : callable
        Given the path of a layer, whether to stop before it.
    """

    def __init__(self, run: Callable[[], None], stops: Callable[[str], bool]) -> None:
        self.at: Call | None = None
        self._run = run
        self._stops = stops
        self._baton = _Baton()
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def watch(self, path: str, module: nn.Module) -> Any:
        """Register a hook that stops this run before a layer; other runs pass."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.current_thread() is self._thread and self._stops(path):
                self.at = Call(path, module, (args, kwargs))
                self._wait()

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def proceed(self) -> None:
        """Let the run go on to the next layer that stops it, or to its end; what it raises is raised here."""
        if self._done.is_set():
            return
        self.at = None
        self._baton.yours.clear()
        self._baton.mine.set()
        self._baton.yours.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the run where it is."""
        self._baton.stopped = True
        while not self._done.is_set():
            self._baton.yours.clear()
            if self._done.is_set():  # between the two lines above
                break
            self._baton.mine.set()
            self._baton.yours.wait()
        self._thread.join()

    def _wait(self) -> None:
        self._baton.mine.clear()
        self._baton.yours.set()
        self._baton.mine.wait()
        if self._baton.stopped:
            raise _Stopped

    def _main(self) -> None:
        self._baton.mine.wait()
        try:
            if not self._baton.stopped:
                with torch.no_grad():
                    self._run()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 (it is raised where the run is waited for)
            self._error = error
        finally:
            self._done.set()
            self._baton.yours.set()
