"""Which jobs share a start-up, and which run side by side."""

from collections.abc import Sequence

from .plan import Job


def devices_of(job: Job) -> int:
    """Devices of all roles of a job. A judge behind an endpoint has none, nor has what only drives an engine."""
    served = any(role.engine is not None and role.devices for role in job.roles.values())
    own = [role for role in job.roles.values() if not role.shared]
    return sum(role.devices for role in own if role.mesh is not None or role.engine is not None or not served)


def group(jobs: Sequence[Job], there: int) -> tuple[tuple[str, ...], ...]:
    """Maximal runs of jobs on the same devices, so that one start-up serves many; jobs that leave room for another of their size
    share only with those that wait for each other anyway."""
    runs: list[list[Job]] = []
    for job in jobs:
        last = runs[-1][-1] if runs else None
        alike = last is not None and last.roles["trainer"].torchrun == job.roles["trainer"].torchrun
        if alike and last is not None and (2 * devices_of(job) > there or _track(last) == _track(job)):
            runs[-1].append(job)
        else:
            runs.append([job])
    return tuple(tuple(job.id for job in run) for run in runs)


def _track(job: Job) -> str:
    """Jobs of one track follow each other: the phases of a teacher."""
    return ".".join(job.id.split(".")[:2])


def waves(processes: Sequence[Sequence[str]], jobs: Sequence[Job], there: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of the processes that may run at the same time, wave after wave: each takes the first that are ready and fit."""
    by_id = {job.id: job for job in jobs}
    needs = [{need for job in process for need in by_id[job].needs} - set(process) for process in processes]
    size = [max(devices_of(by_id[job]) for job in process) for process in processes]
    waiting, finished = list(range(len(processes))), set[str]()
    found: list[tuple[int, ...]] = []
    while waiting:
        room, wave = there, list[int]()
        for number in waiting:
            if needs[number] <= finished and (size[number] <= room or not wave):
                wave.append(number)
                room -= size[number]
        waiting = [number for number in waiting if number not in wave]
        finished |= {job for number in wave for job in processes[number]}
        found.append(tuple(wave))
    return tuple(found)
