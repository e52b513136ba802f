"""The body of train.py: compose -> validate -> build -> run."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from scoregen import config
from scoregen.cli.entry import DONE, INTERRUPTED, run_entry
from scoregen.errors import UserError

EXAMPLES = """\
examples:
  python train.py                                        the embedded default, experiment=digits_edm
  python train.py experiment=cifar_edm data.root=DIR     an experiment, with a value changed
  python train.py trainer.total=20000 trainer.batch=64 trainer.microbatch=16 run_dir=runs/x device=cpu
  torchrun --nproc_per_node 8 train.py experiment=cifar_edm
  python train.py -m objective=denoising,lcss seed=0,1   four runs, each with a folder, and a table of them
  python train.py -m --trials 20 'optimizer.lr=log(1e-4,1e-2)' seed=0,1   chosen by Optuna
  python train.py -m launcher=slurm experiment=cifar_edm submit to Slurm, requeued until it is done
  python train.py --resume runs/x trainer.total=200000   go on with a run, without its settings by heart
  python train.py init=runs/x data.root=NEW run_dir=runs/y   start from the weights of a model
  python train.py experiment=cifar_edm dry=true          parameters, FLOPs, memory and cost, no training

The same command again, or --resume RUN, goes on with a run exactly; a finished one says so. Ctrl-C saves
and stops.
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
    parser.add_argument(
        "--trials", type=int, metavar="N", help="with -m: N runs chosen by Optuna; see docs/sweeps.md"
    )
    parser.add_argument(
        "--minimize", metavar="NAME", help="with -m: what runs are compared by (heldout_loss, else loss)"
    )
    parser.add_argument(
        "--resume", metavar="RUN", type=Path, help="go on with the run in this folder, by its own settings"
    )
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and exit")
    return parser


def _train(argv: Sequence[str]) -> int:
    args = _parser().parse_intermixed_args(argv)
    if args.multirun and args.resume:
        raise UserError("--resume goes on with one run; a sweep resumes by its own command")
    if args.multirun and args.cfg:
        raise UserError("--cfg shows one run: leave -m out")
    if args.multirun:
        from scoregen.cli.sweep import sweep

        return sweep(args.overrides, args.trials, args.minimize)
    if args.trials is not None or args.minimize is not None:
        raise UserError("--trials and --minimize compare several runs: add -m")
    cfg, problems = _settings(args)
    if args.cfg:
        config.refuse(problems)
        print(config.to_yaml(cfg), end="")
        return DONE
    if cfg.get("launcher") is not None:
        problems.append(config.Problem("launcher", "it submits runs to others: add -m"))
    from scoregen.parallel import world_size

    check(cfg, problems, world_size())
    if cfg.dry:
        from scoregen.plan import plan

        print(plan(cfg))
        return DONE
    return run(cfg)


def _settings(args: argparse.Namespace) -> tuple[DictConfig, list[config.Problem]]:
    """Those of the command line, or of the run to go on with where it does not say otherwise."""
    if args.resume is None:
        return config.compose(args.overrides)
    from scoregen.build import saved_config
    from scoregen.trust import refuse_foreign

    saved = saved_config(args.resume)
    if saved is None:
        raise UserError(f"--resume {args.resume}: there is no run with a checkpoint")
    refuse_foreign(saved, str(args.resume), parts=map(str, saved))
    if saved.schedule.get("total") == saved.trainer.total:
        saved.schedule.total = "${trainer.total}"  # so that a run that ends there is not lengthened
    cfg, problems = config.revise(saved, args.overrides)
    if cfg.run_dir != saved.run_dir:
        problems.append(config.Problem(f"run_dir={cfg.run_dir}", "--resume goes on where the run is"))
    cfg.run_dir = str(args.resume)
    return cfg, problems


def train(overrides: Sequence[str]) -> dict[str, Any]:
    """Train one run to its end, or what is left of it; the last value of everything in its log.

    What train.py does with these settings, for searches of one's own: `train(["seed=1"])["loss"]`.

    Raises:
        UserError: wrong settings, or a run that cannot go on.
        KeyboardInterrupt: it was told to stop, and is saved; the same call goes on.
    """
    from scoregen.parallel import world_size
    from scoregen.training.summary import read_summary

    cfg, problems = config.compose(overrides)
    check(cfg, problems, world_size())
    if run(cfg) == INTERRUPTED:
        raise KeyboardInterrupt
    last: dict[str, Any] = read_summary(Path(cfg.run_dir))["last"]
    return last


def check(cfg: DictConfig, problems: list[config.Problem], processes: int) -> None:
    """Refuse a configuration with problems, those of `validate` among them."""
    from scoregen.validation import validate

    config.refuse([*problems, *validate(cfg, processes)])


def run(cfg: DictConfig) -> int:
    """Train, and say how it went; the exit code."""
    from scoregen.build import build_trainer
    from scoregen.training.summary import SUMMARY, write_summary

    trainer = build_trainer(cfg)
    say = print if trainer.parallel.is_main else _silent
    try:
        if trainer.finished and (trainer.run_dir / SUMMARY).exists():
            say(f"{trainer.run_dir} is finished at {trainer.nimg:,} images; raise trainer.total to go on")
            return DONE
        if cfg.get("init") and not trainer.nimg:
            say(f"starting from the weights of {cfg.init}")
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


if __name__ == "__main__":
    sys.exit(main())
