"""Export a run as a pipeline folder that diffusers loads in an environment without scoregen.

    python -m scoregen.export.diffusers runs/x out/

One-step students export like any run. docs/export.md tells more.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoregen import config
from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from scoregen.cli.source import Source
    from scoregen.data.base import Dataset
    from scoregen.denoisers.network import NetworkDenoiser

COMPONENT = "denoiser"  # the model's folder in the pipeline's
WEIGHTS = "diffusion_pytorch_model.safetensors"  # the name that diffusers looks for


def export(source: "Source", out: Path, *, sampler: "DictConfig | None" = None) -> None:
    """Write a pipeline folder: weights, configuration, and the source files that run them.

    Args:
        source: a run or a weights file.
        out: a folder that is empty or not there yet.
        sampler: configuration of a sampler instead of the run's own.

    Raises:
        UserError: for a model that is not a plain network denoiser of images; for a sampler that needs
            training data.
    """
    from scoregen.denoisers.network import NetworkDenoiser
    from scoregen.export.bundle import bundle
    from scoregen.training.weights import write_weights

    denoiser = source.denoiser
    if type(denoiser) is not NetworkDenoiser:
        raise UserError(f"{source.description}: only networks are exported, not {type(denoiser).__name__}")
    if len(denoiser.shape) != 3 or denoiser.cond_shape:
        raise UserError(
            f"{source.description}: the pipeline draws images, of a class or none; this model draws samples "
            f"of shape {denoiser.shape}"
        )
    if source.cfg.get("codec") is not None:
        raise UserError(f"{source.description}: it draws latents, and its autoencoder is not exported")
    chosen = _without_data(source.cfg.sampler if sampler is None else sampler, denoiser)
    network = config.to_container(source.cfg.network) | _of_data(denoiser)
    of_model: set[str] = set()
    of_pipeline: set[str] = set()
    description = {
        "network": _flattened(network, of_model),
        "precond": _flattened(config.to_container(source.cfg.precond), of_model),
        "sampler": _flattened(config.to_container(chosen), of_pipeline),
        "shape": list(denoiser.shape),
        "num_classes": denoiser.num_classes,
        "precision": denoiser.precision,
    }
    index = {"_class_name": ["pipeline", "DenoiserPipeline"], COMPONENT: ["model", "DenoiserModel"]}
    _write_json(out / "model_index.json", index)
    _write_json(out / COMPONENT / "config.json", {"_class_name": "DenoiserModel", **description})
    tensors = {f"denoiser.{key}": value for key, value in denoiser.state_dict().items()}
    write_weights(out / COMPONENT / WEIGHTS, tensors, {"format": "pt"})
    _write_texts(out / COMPONENT, bundle("scoregen.export.model", of_model, "model"))
    _write_texts(out, bundle("scoregen.export.pipeline", of_pipeline, "pipeline"))


def _of_data(denoiser: "NetworkDenoiser") -> dict[str, Any]:
    """The arguments of the network that the framework filled in when it was built."""
    network: Any = denoiser.network
    return {
        "resolution": denoiser.shape[-1],
        "channels": denoiser.shape[0],
        "out_channels": network.out_channels,
        "num_classes": network.num_classes,
        "augment_dim": network.augment_dim,
    }


def _without_data(sampler: "DictConfig", denoiser: "NetworkDenoiser") -> "DictConfig":
    """The configuration of a sampler, from the model's highest level on; UserError where it needs data."""
    from omegaconf import OmegaConf

    from scoregen.samplers.fit import fit_sampler

    def refuse() -> "Dataset":
        raise UserError(
            f"{sampler['_target_'].rpartition('.')[2]} needs the training data, which are not exported; "
            "choose one that starts from noise alone, for example --sampler auto, if the model can"
        )

    fit_sampler(config.instantiate(sampler), denoiser, refuse, None)
    if denoiser.sigma_max < sampler.get("grid", {}).get("sigma_max", 0):
        # The end of a student is its run's, not its preconditioner's, which alone goes along.
        sampler = OmegaConf.merge(sampler, {"grid": {"sigma_max": denoiser.sigma_max}})
    return sampler


def _flattened(node: Any, modules: set[str]) -> Any:
    """A configuration whose targets are named as in the flat folder; their modules are added to `modules`."""
    from scoregen.export.bundle import flat

    if isinstance(node, list):
        return [_flattened(item, modules) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _flattened(value, modules) for key, value in node.items()}
    if "_target_" in node:
        target = config.locate(node["_target_"])
        modules.add(target.__module__)
        result["_target_"] = f"{flat(target.__module__)}.{target.__qualname__}"
    return result


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from scoregen.files import write_whole

    write_whole(
        path, (json.dumps({"_diffusers_version": version("diffusers"), **content}, indent=2) + "\n").encode()
    )


def _write_texts(folder: Path, files: dict[str, str]) -> None:
    from scoregen.files import write_whole

    for name, text in files.items():
        write_whole(folder / name, text.encode())


def write_card(source: "Source", out: Path, *, path: str, license_name: str) -> None:
    """Write README.md, the model card, with the metrics that the run folder holds."""
    from scoregen.export.card import model_card
    from scoregen.files import write_whole

    metrics = None if source.run_dir is None else source.run_dir / "metrics.json"
    data = source.cfg.data["_target_"].rpartition(".")[2].removeprefix("load_")
    shape = "x".join(map(str, source.denoiser.shape))
    text = model_card(
        name=str(source.cfg.name),
        path=path,
        license_name=license_name,
        facts={
            "trained on": f"{data}, {source.manifest['nimg']:,} images of {shape} seen",
            "classes": source.denoiser.num_classes or "none",
            "weights": f"averaged; sha256 of the original begins {source.manifest['weights_sha256']}",
            "made with": f"scoregen {version('scoregen')}",
        },
        config=config.to_yaml(source.cfg),
        metrics=json.loads(metrics.read_text()) if metrics is not None and metrics.exists() else [],
        conditional=source.denoiser.num_classes > 0,
    )
    write_whole(out / "README.md", text.encode())


def push(out: Path, repository: str) -> None:
    """Upload the folder to a model repository of the Hugging Face hub, made private where it is new.

    Raises:
        UserError: where nobody is logged in, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=out)
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"--push-to-hub {repository}: {error}\n{out} is whole; log in with `hf auth login`, or "
            "upload it by hand"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoregen.export.diffusers",
        description="Export a run as a diffusers pipeline that needs no scoregen.",
    )
    parser.add_argument("run", type=Path, help="a run folder or a .safetensors file")
    parser.add_argument("out", type=Path, help="the folder to write; it must not hold anything yet")
    parser.add_argument("--sampler", metavar="NAME", help="instead of the run's own")
    parser.add_argument(
        "--license", default="other", metavar="ID", help="of the weights, for the model card (default: other)"
    )
    parser.add_argument("--push-to-hub", metavar="REPOSITORY", help="then upload it, privately: user/name")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 the user's input is wrong."""
    return run_entry(_export, argv)


def _export(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    check_writable(args.out / "model_index.json")
    if args.out.is_dir() and any(args.out.iterdir()):
        raise UserError(f"{args.out} is not empty; choose another folder")
    sampler = None
    if args.sampler:
        sampler, problems = config.choose("sampler", args.sampler)
        config.refuse(problems)
    import torch

    from scoregen.cli.source import load_source

    source = load_source(args.run, torch.device("cpu"))
    export(source, args.out, sampler=sampler)
    path = args.push_to_hub or str(args.out)
    write_card(source, args.out, path=path, license_name=args.license)
    print(f"wrote {args.out}; load it with\n  DiffusionPipeline.from_pretrained({path!r}, "
          f"custom_pipeline={path!r}, trust_remote_code=True)")  # fmt: skip
    if args.push_to_hub:
        push(args.out, args.push_to_hub)
        print(f"uploaded to {args.push_to_hub}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
