"""Turn the weights of another program into a weights file that sample.py, evaluate.py and distillation take.

    python -m scoregen.export.foreign edm-cifar10-32x32-uncond-vp.pkl --out edm.safetensors --data cifar10

Read are the network pickles of NVIDIA's EDM, whose code is not run, and folders of diffusers with a
UNet2DModel and its noise schedule. docs/export.md tells more.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoregen import config
from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from scoregen.model import ModelSpec


@dataclass(frozen=True)
class Foreign:
    """A model of another program in this one's terms.

    Args:
        network, precond: what `conf/network` and `conf/precond` would say of it.
        spec: its samples, classes and augmentation labels.
        tensors: its parameters and buffers, named as here.
        origin: for people.
    """

    network: dict[str, Any]
    precond: dict[str, Any]
    spec: "ModelSpec"
    tensors: "dict[str, Tensor]"
    origin: str


def read_foreign(path: Path, *, key: str = "ema") -> Foreign:
    """The model in a pickle of EDM or a folder of diffusers; UserError for anything else."""
    from scoregen.export.from_diffusers import from_diffusers
    from scoregen.export.from_edm import from_edm

    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        return from_diffusers(path)
    if path.suffix != ".pkl":
        raise UserError(
            f"{path}: give a .pkl of EDM or a folder of diffusers; weights of ours serve as they are"
        )
    return from_edm(path, key)


def convert(foreign: Foreign, out: Path, *, data: str = "folder") -> None:
    """Write the weights file, once it is sure that they fit the network.

    Args:
        foreign: the model.
        out: the file.
        data: name of the data set that it was trained on, which metrics and teleportation ask for.

    Raises:
        UserError: where the tensors are not those of the network.
    """
    from scoregen.model import build_denoiser
    from scoregen.training.weights import load_weights, provenance, write_weights

    cfg, problems = config.compose([f"data={data}", "experiment=null", f"name={out.stem}"])
    config.refuse(problems)
    cfg.network, cfg.precond = foreign.network, foreign.precond
    if "sigma_data" in foreign.precond:
        cfg.sigma_data = foreign.precond["sigma_data"]
    denoiser = build_denoiser(cfg, foreign.spec)
    load_weights(denoiser, foreign.tensors, foreign.origin)
    metadata = {"config": config.to_yaml(cfg), "model": foreign.spec.to_json(), "origin": foreign.origin}
    write_weights(out, denoiser.state_dict(), {**metadata, **provenance(), "nimg": "0"})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoregen.export.foreign",
        description="Turn the weights of EDM or diffusers into a weights file for sample.py and evaluate.py.",
    )
    parser.add_argument("source", type=Path, help="a .pkl of EDM, or a folder of diffusers")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors to write")
    parser.add_argument("--data", default="folder", metavar="NAME", help="the data set it was trained on")
    parser.add_argument("--key", default="ema", help="of the network in a .pkl (default: ema)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 the user's input is wrong."""
    return run_entry(_convert, argv)


def _convert(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    check_writable(args.out)
    if args.data not in config.groups()["data"]:
        known = config.suggest(args.data, config.groups()["data"])
        raise UserError(f"--data {args.data}: no such data set; {known}")
    foreign = read_foreign(args.source, key=args.key)
    convert(foreign, args.out, data=args.data)
    print(f"wrote {args.out} from {foreign.origin}\nnext: python sample.py --run {args.out}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
