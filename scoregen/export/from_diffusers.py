"""A UNet2DModel in a folder of diffusers, with its noise schedule, in this program's terms."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoregen.errors import UserError

if TYPE_CHECKING:
    from scoregen.export.foreign import Foreign

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Options of UNet2DModel that would change what its input or its noise label means.
REFUSED = {"center_input_sample": (False,), "time_embedding_type": ("positional",)}


def from_diffusers(folder: Path) -> "Foreign":
    """The model of a pipeline folder, or of a model's own folder with the scheduler's beside it.

    Raises:
        UserError: where files are missing or damaged, weights are a pickle, or the model is of another kind
            than a UNet2DModel trained with a DDPM-type schedule.
    """
    from scoregen.export.foreign import Foreign
    from scoregen.model import ModelSpec
    from scoregen.training.weights import read_weights

    home = folder / "unet" if (folder / "unet").is_dir() else folder
    settings = _read(home / "config.json")
    if settings.get("_class_name") != "UNet2DModel":
        raise UserError(f"{home}: a {settings.get('_class_name')}, only UNet2DModel is read")
    for name, allowed in REFUSED.items():
        if settings.get(name, allowed[0]) not in allowed:
            raise UserError(f"{home}: {name}={settings[name]} is not read, only {allowed[0]}")
    schedule = _find_schedule(folder, home)
    weights = home / "diffusion_pytorch_model.safetensors"
    if not weights.exists():
        raise UserError(
            f"{weights} is missing. Weights in a .bin are a pickle: save them anew in diffusers with "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    tensors, _ = read_weights(weights)
    plain = {key: value for key, value in settings.items() if not key.startswith("_")}
    size, channels = settings["sample_size"], settings["in_channels"]
    return Foreign(
        network={"_target_": "scoregen.networks.ForeignUNet", "settings": plain},
        precond=_precond(schedule, folder),
        spec=ModelSpec((channels, size, size), settings.get("num_class_embeds") or 0),
        tensors={f"network.unet.{key}": value.float() for key, value in tensors.items()},
        origin=f"{folder.name}, UNet2DModel with {schedule['_class_name']}",
    )


def _find_schedule(folder: Path, home: Path) -> dict[str, Any]:
    places = [folder / "scheduler", home, home.parent / "scheduler"]
    for place in places:
        if (place / "scheduler_config.json").exists():
            return _read(place / "scheduler_config.json")
    looked = ", ".join(str(place / "scheduler_config.json") for place in places)
    raise UserError(f"the noise schedule that the model was trained with is needed; looked for {looked}")


def _precond(schedule: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `conf/precond` would say."""
    kind, prediction = schedule.get("beta_schedule", "linear"), schedule.get("prediction_type", "epsilon")
    known = kind in SCHEDULES and prediction in PREDICTIONS and not schedule.get("trained_betas")
    if not known or schedule.get("rescale_betas_zero_snr"):
        raise UserError(
            f"{folder}: a schedule {kind} with prediction {prediction} is not read; known are "
            f"{', '.join(SCHEDULES)} with {', '.join(PREDICTIONS)}, without trained or rescaled betas"
        )
    return {
        "_target_": "scoregen.diffusion.precond.DDPMPrecond",
        "prediction": prediction,
        "schedule": kind,
        "beta_start": schedule.get("beta_start", 1e-4),
        "beta_end": schedule.get("beta_end", 0.02),
        "levels": schedule.get("num_train_timesteps", 1000),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: the folder of a UNet2DModel is expected, or of a pipeline with one"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no configuration")
    return content
