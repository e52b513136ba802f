"""Runs on a cluster: submit what train.py would run, and go on after a pre-emption or the end of its time."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from scoregen.errors import UserError
from scoregen.ranges import PositiveInt

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission


@dataclass(frozen=True)
class Submitted:
    """train.py with its arguments, as one task of a job; submitit stores it and calls it there.

    A stop signal ends it saved. The first task then hands submitit the signal that it acts on, to requeue
    the job with the same call, which resumes.
    """

    argv: tuple[str, ...]

    def __call__(self) -> int:
        """Train as this task of the job; the exit code."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        from scoregen.cli.entry import INTERRUPTED
        from scoregen.cli.train import main

        job = JobEnvironment()
        if job.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        code = main(self.argv)
        if code == INTERRUPTED and job.global_rank == 0:
            signal.raise_signal(getattr(signal, f"SIG{job.USR_SIG}"))
        return code

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit requeues: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class SlurmLauncher:
    """Submits runs to Slurm by submitit, one process for each GPU.

    Args:
        cluster: slurm; or local, processes of this machine, to try a job without Slurm.
        nodes: machines. tasks_per_node: processes on each. gpus_per_node: null asks for none.
        cpus_per_task: cores of each process.
        timeout_min: minutes until the job is stopped, saved and requeued.
        signal_delay_s: seconds before that at which it is told to save.
        max_num_timeout: times that it is requeued because its time was up; pre-emptions do not count.
        folder: of the job's script and output; %j is its number.
        parameters: further options of sbatch by their names, such as {partition: gpu, account: x}.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    nodes: PositiveInt = 1
    tasks_per_node: PositiveInt = 1
    gpus_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt = 1
    timeout_min: PositiveInt = 1440
    signal_delay_s: PositiveInt = 120
    max_num_timeout: PositiveInt = 100
    folder: str = "runs/submitit/%j"
    parameters: dict[str, str | int] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Of each run."""
        return self.nodes * self.tasks_per_node

    def submit(self, runs: Sequence[Sequence[str]]) -> "list[Job[int]]":
        """Submit train.py with each of these arguments, several as one array; UserError without submitit."""
        try:
            from submitit import AutoExecutor
        except ImportError as error:
            raise UserError("a launcher needs submitit: pip install 'scoregen[slurm]'") from error
        executor = AutoExecutor(self.folder, cluster=self.cluster, slurm_max_num_timeout=self.max_num_timeout)
        executor.update_parameters(
            name="scoregen",
            nodes=self.nodes,
            tasks_per_node=self.tasks_per_node,
            gpus_per_node=self.gpus_per_node,
            cpus_per_task=self.cpus_per_task,
            timeout_min=self.timeout_min,
            slurm_signal_delay_s=self.signal_delay_s,
            slurm_additional_parameters=self.parameters,
        )
        jobs: list[Job[int]] = executor.submit_array([Submitted(tuple(argv)) for argv in runs])
        return jobs
