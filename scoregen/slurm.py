"""Slurm's tasks as processes of one run: what `srun` says, in the words that torch and accelerate read."""

import re
from collections.abc import MutableMapping

PORTS = range(20_000, 40_000)  # of which a job takes one by its number, so that jobs on one node do not meet


def adopt_slurm(env: MutableMapping[str, str]) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from SLURM_*, where nobody else has.

    Nothing is set under another launcher (torchrun, accelerate launch), for a single task, and in the batch
    script itself, which Slurm runs once however many tasks the job has.
    """
    tasks = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))
    in_batch_script = "SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env
    if "RANK" in env or "WORLD_SIZE" in env or "SLURM_PROCID" not in env or tasks == "1" or in_batch_script:
        return
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], tasks
    env["LOCAL_RANK"] = str(_local_rank(env))
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", "localhost"))
    env.setdefault("MASTER_ADDR", first_node(nodes))
    env.setdefault("MASTER_PORT", str(PORTS[int(env.get("SLURM_JOB_ID", "0")) % len(PORTS)]))


def _local_rank(env: MutableMapping[str, str]) -> int:
    """The task's number on its node, by which it takes a GPU; 0 where Slurm shows each task one GPU only."""
    visible = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    number = int(env.get("SLURM_LOCALID", "0"))
    return number % len(visible) if visible else number


def first_node(nodes: str) -> str:
    """The first name of Slurm's compressed list: `gpu[007-010,12],x1` begins with `gpu007`."""
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    assert found is not None, f"Slurm names no node: {nodes!r}"
    return "".join(part or "" for part in found.groups())
