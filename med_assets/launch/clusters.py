"""What the launchers of clusters share: a cluster is asked seldom, and a job of which it says nothing for a while is taken to go on."""

import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from med_assets.errors import LaunchFailed
from med_assets.launch import launcher
from med_assets.launch.jobs import RESULT
from med_assets.launch.launcher import Handle, Launcher, Phase, State


class Configuration(launcher.Configuration):
    """What any of them can be asked for."""

    ask_s: float = Field(default=10.0, ge=0, description="least time between two questions about one job, s")


@dataclass
class Known:
    """What was last heard of a job, and since when, s of the monotonic clock."""

    state: State
    asked_at: float = -float("inf")
    ended_at: float | None = None
    stuck_at: float | None = None

    def may_have_result(self, now: float, within_s: float) -> bool:
        """Whether the result of a job that ended may still come: it was first seen to have ended less than `within_s` ago."""
        self.ended_at = self.ended_at or now
        return now - self.ended_at < within_s


class ClusterLauncher(Launcher):
    """A launcher whose jobs a cluster runs; `cluster_name` is what people call it."""

    configuration: Configuration
    cluster_name: ClassVar[str] = "the cluster"

    def __init__(self, configuration: launcher.Configuration | None = None) -> None:
        super().__init__(configuration or self.configuration_type())
        self._known: dict[str, Known] = {}

    def state(self, handle: Handle) -> State:
        """State now; the cluster itself is asked once in `ask_s` seconds at most."""
        now = time.monotonic()
        if (handle.job / RESULT).is_file():
            return State(Phase.ENDED, f"{handle.title} has a result")
        known = self._known.setdefault(handle.id, Known(State(Phase.RUNNING, f"{handle.title} is submitted")))
        if now - known.asked_at >= self.configuration.ask_s:
            known.asked_at = now
            try:
                known.state = self._state(handle, known, now)
            except LaunchFailed as error:
                silent = f"{self.cluster_name} does not answer"
                known.state = State(Phase.RUNNING, f"{silent}, {handle.title} is taken to go on ({error})")
        return known.state

    @abstractmethod
    def _state(self, handle: Handle, known: Known, now: float) -> State:
        """What the cluster says now of a job without a result. Raises LaunchFailed where it does not answer."""
