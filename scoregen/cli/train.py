"""The body of train.py: compose -> validate -> build -> run."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from scoregen import config
from scoregen.cli.entry import DONE, INTERRUPTED, run_entry

if TYPE_CHECKING:
    from scoregen.launch import SlurmLauncher

EXAMPLES = """\
examples:
  python train.py                                        the embedded default, experiment=digits_edm
  python train.py experiment=cifar_edm data.root=DIR     an experiment, with a value changed
  python train.py trainer.total=20000 trainer.batch=64 trainer.microbatch=16 run_dir=runs/x device=cpu
  torchrun --nproc_per_node 8 train.py experiment=cifar_edm
  python train.py -m seed=0,1,2 run_dir='runs/x${seed}'   three runs, one after the other
  python train.py -m launcher=slurm experiment=cifar_edm submit to Slurm, requeued until it is done
  python train.py experiment=cifar_edm dry=true          parameters, FLOPs, memory and cost, no training

The same command again resumes its run folder exactly; a finished run says so. Ctrl-C saves and stops.
exit codes: 0 done, 2 wrong input, 1 a defect, 130 interrupted and resumable
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entry; the exit code."""
    return run_entry(_train, argv)


def _parser() -> argparse.ArgumentParser:
    choices = "\n".join(f"  {group:<11} {', '.join(names)}" for group, names in config.groups().items())
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a score model. Every setting is `group=choice` or `key=value`.",
        epilog=f"groups and their choices:\n{choices}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="see the groups below and --cfg job"
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of values key=a,b"
    )
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and exit")
    return parser


def _train(argv: Sequence[str]) -> int:
    args = _parser().parse_intermixed_args(argv)
    if args.multirun:
        return _train_many(config.sweep(args.overrides))
    cfg, problems = config.compose(args.overrides)
    if args.cfg:
        config.refuse(problems)
        print(config.to_yaml(cfg), end="")
        return DONE
    if cfg.get("launcher") is not None:
        problems.append(config.Problem("launcher", "it submits runs to others: add -m"))
    from scoregen.parallel import world_size

    _check(cfg, problems, world_size())
    if cfg.dry:
        from scoregen.plan import plan

        print(plan(cfg))
        return DONE
    return _run(cfg)


def _train_many(runs: Sequence[Sequence[str]]) -> int:
    """Train each in turn, or submit them all where there is a launcher; nothing begins if one is wrong."""
    from scoregen.parallel import world_size

    cfgs: list[DictConfig] = []
    for overrides in runs:
        cfg, problems = config.compose(overrides)
        if cfg.get("launcher") is None and world_size() > 1:
            problems.append(config.Problem("-m", "several processes train one run; leave it out"))
        if cfg.run_dir in [other.run_dir for other in cfgs]:
            advice = "of two of these runs; name what differs: run_dir='runs/x${seed}'"
            problems.append(config.Problem(f"run_dir={cfg.run_dir}", advice))
        _check(cfg, problems, processes=1)
        cfgs.append(cfg)
    launcher: SlurmLauncher | None = config.instantiate(cfgs[0].get("launcher"))
    if launcher is None:
        return max(map(_run, cfgs))
    for cfg in cfgs:
        _check(cfg, [], launcher.processes)
    jobs = launcher.submit([config.without("launcher", overrides) for overrides in runs])
    for cfg, job in zip(cfgs, jobs, strict=True):
        print(f"{cfg.run_dir}: job {job.job_id}, output in {job.paths.stdout}")
    return DONE


def _check(cfg: DictConfig, problems: list[config.Problem], processes: int) -> None:
    """Refuse a configuration with problems, those of `validate` among them."""
    from scoregen.validation import validate

    config.refuse([*problems, *validate(cfg, processes)])


def _run(cfg: DictConfig) -> int:
    from scoregen.build import build_trainer
    from scoregen.training.summary import SUMMARY, write_summary

    trainer = build_trainer(cfg)
    say = print if trainer.parallel.is_main else _silent
    try:
        if trainer.finished and (trainer.run_dir / SUMMARY).exists():
            say(f"{trainer.run_dir} is finished at {trainer.nimg:,} images; raise trainer.total to go on")
            return DONE
        if trainer.nimg:
            say(f"resuming {trainer.run_dir} at {trainer.nimg:,} images")
        if not trainer.run():
            say(f"stopped and saved at {trainer.nimg:,} images; the same command resumes", file=sys.stderr)
            return INTERRUPTED
        if trainer.parallel.is_main:
            write_summary(trainer.run_dir, trainer.nimg, trainer.stop_reason)
        say(f"done: {trainer.stop_reason or f'{trainer.nimg:,} images'}")
        say(f"next: python sample.py --run {shlex.quote(str(trainer.run_dir))}")
        return DONE
    finally:
        trainer.close()


def _silent(*_: object, **__: object) -> None:
    """The voice of every process but the main one."""
