"""From one client's request to the requests of its choices."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.engines.flow import Endpoint, EngineFlow
from pdserve.forwarding.deadline import PromptSize
from pdserve.forwarding.fair_turns import Turn
from pdserve.gateway.access_log import Record
from pdserve.gateway.choices import Choice, ChoiceReply
from pdserve.gateway.delivery import ClientReply
from pdserve.gateway.job import Job, Tools
from pdserve.gateway.request_driver import RequestDriver
from pdserve.gateway.timed_scheduler import TimedScheduler
from pdserve.http1.errors import Headers


@dataclass(slots=True)
class DriverMaker:
    """What all choices of one client's request share; makes the driver of each."""

    scheduler: TimedScheduler
    flow: EngineFlow
    tools: Tools
    endpoint: Endpoint
    leg_name: str
    several: bool
    """There is more than one choice."""
    trace: Headers
    sizes: list[PromptSize]
    """Of each prompt."""
    model: str
    """As the client named it."""
    memory: int
    """See `Job.memory`."""
    turn: Turn
    record: Record
    """Gets each request, for the access log; has the trace."""

    def of_choice(self, choice: Choice, answer: ClientReply, arrived: float) -> RequestDriver:
        """The request of one choice; its time counts from `arrived` (`time.perf_counter`)."""
        name = f"{self.leg_name}-{choice.index}" if self.several else self.leg_name
        job = Job(
            self.endpoint, choice.take_body(), name, self.trace, self.sizes[choice.prompt],
            self.model, self.memory, self.turn, self.record.trace,
        )  # fmt: skip
        driver = RequestDriver(self.scheduler, self.flow, self.tools, job, answer, arrived)
        self.record.requests.append(driver.request)
        return driver

    def of_part(self, part: ChoiceReply, arrived: float) -> RequestDriver:
        """The same, of a choice that answers to a joined reply."""
        return self.of_choice(part.choice, part, arrived)
