"""Turn the weights of another program into a weights file that sample.py, evaluate.py and distillation take.

    python -m scoregen.export.foreign edm-cifar10-32x32-uncond-vp.pkl --out edm.safetensors --data cifar10

Read are the network pickles of NVIDIA's EDM and EDM2, whose code is not run, checkpoints of score_sde, and
folders of diffusers with a UNet2DModel and its noise schedule. docs/export.md tells more.
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
        codec: what `conf/codec` would say, of a model of latents.
    """

    network: dict[str, Any]
    precond: dict[str, Any]
    spec: "ModelSpec"
    tensors: "dict[str, Tensor]"
    origin: str
    codec: dict[str, Any] | None = None


def read_foreign(
    path: Path, *, key: str = "ema", resolution: int = 32, autoencoder: str | None = None
) -> Foreign:
    """The model in a pickle of EDM or EDM2, a checkpoint of score_sde or a folder of diffusers.

    Args:
        path: the file or folder. key: of the network in a file that holds several.
        resolution: of the images, which a checkpoint of score_sde does not tell.
        autoencoder: folder or owner/name of that of a model of latents, which its file does not hold.

    Raises:
        UserError: for anything else, and for what has no counterpart here.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if resolution < 1:
        raise UserError(f"--resolution {resolution}: a positive number of pixels is expected")
    try:
        foreign = _read(path, key, resolution, autoencoder)
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not as its program writes such files ({error!r})") from error
    if autoencoder is not None and foreign.codec is None:
        raise UserError(f"{path}: its network draws images, not latents; leave out --autoencoder")
    return foreign


def _read(path: Path, key: str, resolution: int, autoencoder: str | None) -> Foreign:
    from scoregen.export.from_diffusers import from_diffusers
    from scoregen.export.from_edm import from_edm
    from scoregen.export.from_score_sde import from_score_sde

    if path.is_dir():
        return from_diffusers(path)
    if path.suffix == ".pkl":
        return from_edm(path, key, autoencoder)
    if path.suffix in (".pth", ".pt"):
        return from_score_sde(path, key, resolution)
    raise UserError(
        f"{path}: give a .pkl of EDM or EDM2, a .pth of score_sde or a folder of diffusers; weights of ours "
        "serve as they are"
    )


def convert(foreign: Foreign, out: Path, *, data: str = "folder") -> None:
    """Write the weights file, once it is sure that they fit the network.

    Args:
        foreign: the model.
        out: the file.
        data: name of the data set that it was trained on, which metrics and teleportation ask for.

    Raises:
        UserError: where the tensors are not those of the network.
    """
    import torch

    from scoregen.model import build_denoiser
    from scoregen.training.weights import check_weights, provenance, write_weights
    from scoregen.validation import check_choice

    cfg, problems = config.compose([f"data={data}", "experiment=null", f"name={out.stem}"])
    config.refuse(problems)
    cfg.network, cfg.precond = foreign.network, foreign.precond
    if "sigma_data" in foreign.precond:
        cfg.sigma_data = foreign.precond["sigma_data"]
    if foreign.codec is not None:
        cfg.codec = foreign.codec
    config.refuse(check_choice(cfg.network, "network") + check_choice(cfg.precond, "precond"))
    if (blocks := foreign.network.get("num_blocks", 0)) > len(foreign.tensors):
        raise UserError(f"{foreign.origin}: {blocks} blocks a level, but {len(foreign.tensors)} tensors")
    with torch.device("meta"):  # a file may claim a network of any size
        own = build_denoiser(cfg, foreign.spec).state_dict()
    check_weights(own, foreign.tensors, foreign.origin)
    metadata = {"config": config.to_yaml(cfg), "model": foreign.spec.to_json(), "origin": foreign.origin}
    write_weights(out, {key: foreign.tensors[key] for key in own}, {**metadata, **provenance(), "nimg": "0"})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoregen.export.foreign",
        description="Turn the weights of another program into a weights file for sample.py and evaluate.py.",
    )
    parser.add_argument(
        "source", type=Path, help="a .pkl of EDM or EDM2, a .pth of score_sde, a folder of diffusers"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors to write")
    parser.add_argument("--data", default="folder", metavar="NAME", help="the data set it was trained on")
    parser.add_argument("--key", default="ema", help="of the network in a file (default: ema)")
    parser.add_argument(
        "--resolution", type=int, default=32, metavar="N", help="of the images, for a .pth (default: 32)"
    )
    parser.add_argument(
        "--autoencoder", metavar="PATH", help="of a model of latents: its folder, or owner/name on the hub"
    )
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
    foreign = read_foreign(
        args.source, key=args.key, resolution=args.resolution, autoencoder=args.autoencoder
    )
    convert(foreign, args.out, data=args.data)
    print(f"wrote {args.out} from {foreign.origin}\nnext: python sample.py --run {args.out}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
