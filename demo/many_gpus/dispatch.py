"""Gives jobs to workers that are Ray actors. Placement, restarts and transport are Ray's."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
import ray.exceptions
from private_comfyui.environments import HostError

from many_gpus.jobs import Job, Outcome

MOST_LOSSES = 3  # workers that a job may lose before it is set aside
MOST_FAILED_STARTS = 3  # of one worker before it is given up


class Dispatch:
    """Jobs on their way through workers.

    actors: each has ``ready()``, which returns its name, and ``run(job, picture)``, which returns
    an Outcome. tell: called with a sentence about workers that do not start.
    """

    def __init__(self, actors: Sequence[Any], tell: Callable[[str], None]):
        self._tell = tell
        self._numbers = {actor: number for number, actor in enumerate(actors, 1)}
        self._names = dict.fromkeys(actors, "")
        self._failed_starts: Counter = Counter()
        self._losses: Counter = Counter()
        self._calls: dict[Any, tuple[Any, Job | None]] = {}  # by Ray's reference: actor and its job
        self._idle: list[Any] = []
        self._waiting: deque[Job] = deque()
        for actor in actors:
            self._start(actor)

    def outcomes(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome, str]]:
        """Yield each job with its outcome and its worker's name, in the order in which they end.

        A job whose worker is lost is given to the next one. Raises HostError when no worker is
        left.
        """
        self._waiting.extend(jobs)
        while True:
            yield from self._give()
            if not self._waiting and not any(job for _, job in self._calls.values()):
                return  # workers that still start are not waited for
            (ended, *_), _ = ray.wait(list(self._calls), num_returns=1)
            actor, job = self._calls.pop(ended)
            if job is None:
                self._started(actor, ended)
                continue
            outcome = _outcome(ended)
            if outcome.is_lost:
                self._start(actor)
                self._losses[job.name] += 1
                if self._losses[job.name] < MOST_LOSSES:
                    self._waiting.appendleft(job)
                    continue
                outcome.failure = f"set aside, for {MOST_LOSSES} workers failed with it: " + (
                    outcome.failure or ""
                )
            else:
                self._idle.append(actor)
            yield job, outcome, self._names[actor]

    def _give(self) -> Iterator[tuple[Job, Outcome, str]]:
        """Give each idle worker a job; yield those whose picture has gone since."""
        while self._idle and self._waiting:
            job = self._waiting.popleft()
            try:
                picture = job.picture.read_bytes()
            except OSError as error:
                yield job, Outcome(failure=f"the picture cannot be read: {error}"), ""
                continue
            actor = self._idle.pop()
            # Not tried again by Ray, which may hold on to a machine that has gone.
            call = actor.run.options(max_task_retries=0).remote(job, picture)
            self._calls[call] = actor, job

    def _start(self, actor) -> None:
        # An actor whose machine has gone stays here, at no cost, until Ray finds it another.
        call = actor.ready.options(max_task_retries=MOST_FAILED_STARTS - 1).remote()
        self._calls[call] = actor, None

    def _started(self, actor, call) -> None:
        try:
            self._names[actor] = f"{self._numbers[actor]}: {ray.get(call)}"
        except ray.exceptions.RayError as error:
            reason = _reason(error)
            self._failed_starts[actor] += 1
            if self._failed_starts[actor] < MOST_FAILED_STARTS:
                self._start(actor)
                return
            del self._names[actor]
            if not self._names:
                raise HostError(f"no worker starts: {reason}") from None
            self._tell(f"one worker less, it does not start: {reason}")
        else:
            self._failed_starts[actor] = 0
            self._idle.append(actor)


def _outcome(call) -> Outcome:
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:  # the worker's code failed, its process lives
        return Outcome(failure=_reason(error))
    except ray.exceptions.RayError as error:
        return Outcome(failure=_reason(error), is_lost=True)


def _reason(error: ray.exceptions.RayError) -> str:
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
    return str(cause) if isinstance(cause, HostError) else _last_line(str(error))


def _last_line(text: str) -> str:
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"])[-1]
