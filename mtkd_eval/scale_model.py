"""How long steps and runs take on several GPUs, from constants that are measured on one machine.

Nothing is measured here: ``benchmarks/scale.py`` does that and checks the predictions; docs/scale.md explains both.
A process drives one GPU; all of them hold the whole model and exchange gradients in every step (data parallel).
Times are in seconds, sizes in bytes; a patch is one image of the batch.
"""

import math
from dataclasses import dataclass

BACKWARD = 2 / 3  # of the student's part of a step: a gradient costs about two forward passes
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # of DistributedDataParallel: gradients travel in buckets
FLAG = 4  # bytes that go round besides: whether the loss of some process was not finite


@dataclass(frozen=True)
class Line:
    """A time that grows with the patches of a process: ``fixed + per_patch * patches``."""

    fixed: float
    per_patch: float

    def at(self, patches: float) -> float:
        """The time for so many patches."""
        return self.fixed + self.per_patch * patches


@dataclass(frozen=True)
class Link:
    """What joins two neighbours of a ring: bytes per second in one direction, and seconds until the first arrives."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of ``per_node`` processes each; ``within`` joins neighbours of one node, ``between`` those of two."""

    within: Link
    between: Link
    per_node: int

    def link(self, processes: int) -> Link:
        """The pace of a ring of so many processes: that of its slowest part."""
        if processes <= self.per_node:
            return self.within
        bandwidth = min(self.within.bandwidth, self.between.bandwidth)
        return Link(bandwidth, max(self.within.latency, self.between.latency))


@dataclass(frozen=True)
class Costs:
    """What a step of one process is made of.

    Args:
        student: forward, backward, losses, optimizer and average, without teachers or exchange.
        teachers: the passes of the frozen teachers and their aggregator; None without them.
        gradient_bytes: what the processes exchange in a step.
        crowding: how many times longer the student takes when all processes of a node compute at once, at least 1.
        crowding_of_teachers: the same for the passes of the teachers.
        waiting: what processes wait for each other, as a share of their computation.
        overlap: share of the exchange that goes on beside the backward pass, 0 to 1.
        loader_rate: patches per second that the loader of one process delivers; None where it does not limit.
    """

    student: Line
    teachers: Line | None
    gradient_bytes: int
    crowding: float = 1.0
    crowding_of_teachers: float = 1.0
    waiting: float = 0.0
    overlap: float = 0.0
    loader_rate: float | None = None


@dataclass(frozen=True)
class Run:
    """What a run does besides steps; without ``every`` it does not. ``saving`` is done by one process for all."""

    iterations: int
    validated_every: int | None = None
    images: int = 0
    image_seconds: float = 0.0
    saved_every: int | None = None
    saving: float = 0.0


def all_reduce(size: float, processes: int, link: Link, messages: int = 1) -> float:
    """A ring all-reduce of ``size`` bytes in so many messages.

    Everybody sends ``2 (N - 1)`` times, an N-th of the message each: ``2 (N - 1) latency`` for every message and
    ``2 (N - 1) / N size / bandwidth`` together.
    """
    sends = 2 * (processes - 1)
    return messages * sends * link.latency + sends / processes * size / link.bandwidth


def buckets(gradient_bytes: int) -> int:
    """In how many messages DistributedDataParallel sends the gradients: a small one first, then large ones."""
    return 1 + max(0, math.ceil((gradient_bytes - FIRST_BUCKET) / BUCKET))


def computation(costs: Costs, processes: int, patches: float, online: bool) -> float:
    """What a process computes in a step with so many patches of its own; ``online`` with its teachers' passes."""
    if online and costs.teachers is None:
        raise ValueError(
            'online: there is no cost of teachers; measure with an option file that has a teachers section'
        )
    crowded = processes > 1
    student = costs.student.at(patches) * (costs.crowding if crowded else 1.0)
    if not online or costs.teachers is None:
        return student
    return student + costs.teachers.at(patches) * (costs.crowding_of_teachers if crowded else 1.0)


def exchange(costs: Costs, processes: int, patches: float, cluster: Cluster) -> float:
    """What the exchange adds to a step: gradients not hidden behind the backward pass, and the flag after it."""
    link = cluster.link(processes)
    gradients = all_reduce(costs.gradient_bytes, processes, link, buckets(costs.gradient_bytes))
    hidden = min(costs.overlap * gradients, BACKWARD * costs.student.at(patches))
    return gradients - hidden + all_reduce(FLAG, processes, link)


def step(costs: Costs, cluster: Cluster, processes: int, patches: float, online: bool = False) -> float:
    """Seconds of a step on ``processes`` GPUs with ``patches`` each: computation and exchange, or the loader.

    Raises ValueError for less than one process or patch.
    """
    if processes < 1 or patches < 1:
        raise ValueError(f'{processes} processes with {patches} patches each: a step takes at least one of both')
    work = computation(costs, processes, patches, online)
    if processes > 1:
        work = work * (1 + costs.waiting) + exchange(costs, processes, patches, cluster)
    return max(work, patches / costs.loader_rate if costs.loader_rate else 0.0)


def rate(costs: Costs, cluster: Cluster, processes: int, patches: float, online: bool = False) -> float:
    """Patches per second of all processes together."""
    return processes * patches / step(costs, cluster, processes, patches, online)


def efficiency(costs: Costs, cluster: Cluster, processes: int, patches: float, online: bool = False) -> float:
    """``rate`` over that of as many machines that do not know of each other, with as many patches each; at most 1."""
    return rate(costs, cluster, processes, patches, online) / (processes * rate(costs, cluster, 1, patches, online))


def run_seconds(run: Run, seconds_per_step: float, processes: int = 1) -> float:
    """A whole run: its steps, its validations, whose images are split over the processes, and its checkpoints."""
    validations = run.iterations // run.validated_every if run.validated_every else 0
    checkpoints = run.iterations // run.saved_every if run.saved_every else 0
    one_validation = math.ceil(run.images / processes) * run.image_seconds
    return run.iterations * seconds_per_step + validations * one_validation + checkpoints * run.saving
