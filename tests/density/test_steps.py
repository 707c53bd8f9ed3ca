"""Recording a step as a CUDA graph: what happens when, with a stand-in for the GPU.

The numbers on a GPU itself are tested by ``test_training.py`` with PYRO_NAF_DEVICE=cuda.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pyro_naf.density import steps


class StandIn:
    """Of torch.cuda: a graph that runs, when it is replayed, what was called while recording."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.recording, self.fails = False, fails
        self.replayed: Callable[[], None] = lambda: None
        stream = type("Stream", (), {"wait_stream": lambda *_: None})
        for name, value in {
            "Stream": lambda _: stream(),
            "current_stream": lambda _: stream(),
            "stream": lambda _: contextlib.nullcontext(),
            "synchronize": lambda _: None,
            "CUDAGraph": lambda: type("Graph", (), {"replay": lambda _: self.replayed()})(),
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextlib.contextmanager
    def graph(self, graph: Any, **_: Any) -> Iterator[None]:
        self.recording = True
        try:
            yield
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            self.recording = False


def test_a_step_runs_a_few_times_is_recorded_and_then_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, log = StandIn(monkeypatch), []
    gpu.replayed = lambda: log.append("replayed")
    recorder = steps._Recorder(torch.device("cpu"))
    for _ in range(steps.WARM_UP + 3):
        assert recorder.run(
            lambda: log.append("recorded" if gpu.recording else "run"), lambda: log.append("clear")
        )
    assert log == ["run"] * steps.WARM_UP + ["clear", "recorded"] + ["replayed"] * 3


def test_a_step_that_cannot_be_recorded_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn(monkeypatch, fails=True)
    recorder = steps._Recorder(torch.device("cpu"))
    for _ in range(steps.WARM_UP):
        assert recorder.run(lambda: None, lambda: None)
    with pytest.warns(UserWarning, match="cannot be recorded.*RuntimeError: operation not perm"):
        assert not recorder.run(lambda: None, lambda: None)
