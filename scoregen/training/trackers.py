"""Weights & Biases and TensorBoard beside log.jsonl: steps are images, no row is told twice."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scoregen import config
from scoregen.errors import UserError
from scoregen.files import write_whole
from scoregen.objectives.base import SIGMA_EDGES
from scoregen.ranges import Positive
from scoregen.training.loggers import Scalars, flatten, is_by_sigma, read_log
from scoregen.training.weights import provenance

log = logging.getLogger(__name__)

EVALUATE = "evaluate"  # before the names of what evaluate.py has measured
BIN_EDGES = np.log10([SIGMA_EDGES[0] / 10**0.5, *SIGMA_EDGES, SIGMA_EDGES[-1] * 10**0.5])
LAYOUT = {"by noise level": {"loss by sigma": ["Multiline", ["loss_by_sigma/.*"]]}}


def _config(run_dir: Path) -> str:
    """The run's configuration as YAML; empty before it is written."""
    path = run_dir / config.CONFIG
    return path.read_text() if path.is_file() else ""


def _settings(run_dir: Path) -> dict[str, Any]:
    """The run's configuration as plain values; empty before it is written."""
    text = _config(run_dir)
    return config.to_container(config.from_yaml(text, config.CONFIG)) if text else {}


class WandbLogger:
    """Log to Weights & Biases; offline and disabled need neither account nor network.

    `run_dir/wandb_run.json` keeps the run's id and how far it has been told, so that a resumed run goes on in
    the same one and tells nothing twice; what was logged before there was this logger is told first, from
    log.jsonl. (What wandb had not written yet when its process was killed hard is lost to it, not to
    log.jsonl.) The configuration, the versions and the git commit are the run's config. Where the server
    cannot be reached, the run is logged offline, with one warning.

    Args:
        run_dir: the run's folder; wandb's own files go to `run_dir/wandb`.
        mode: offline (send later with `wandb sync`), online or disabled.
        project: name of the project on the server.
        entity: user or team; null takes the account's own.
        timeout: seconds to wait for the server at the start.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        mode: Literal["offline", "online", "disabled"] = "offline",
        project: str = "scoregen",
        entity: str | None = None,
        timeout: Positive = 30.0,
    ) -> None:
        self.run_dir, self.mode, self.project = Path(run_dir), mode, project
        self.entity, self.timeout = entity, timeout
        self._run: Any = None

    def start(self, nimg: int) -> None:
        """Begin, or go on in the run that the folder keeps."""
        self._open()
        for row in read_log(self.run_dir):
            if row["nimg"] <= nimg:
                self.log(row.pop("nimg"), row)

    def log(self, nimg: int, scalars: Scalars) -> None:
        """Record named numbers at `nimg` images, and losses by noise level as histograms, too."""
        import wandb

        scalars = {key: value for key, value in scalars.items() if key != "end"}
        charts = {
            f"{key}/histogram": wandb.Histogram(np_histogram=([item or 0 for item in value], BIN_EDGES))
            for key, value in scalars.items()
            if is_by_sigma(key, value)
        }
        self._tell(nimg, {**dict(flatten(scalars)), **charts})

    def image(self, nimg: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C]."""
        import wandb

        self._tell(nimg, {name: wandb.Image(image)})

    def results(self, nimg: int, scalars: Scalars) -> None:
        """Record them in the summary of the run, where runs are compared."""
        self._open()
        self._run.summary.update({f"{EVALUATE}/{name}": value for name, value in flatten(scalars)})
        self._run.finish()
        self._run = None

    def close(self) -> None:
        """Finish what is pending."""
        if self._run is not None:
            self._run.finish()

    def _open(self) -> None:
        """Join the run of this folder; where the server cannot be reached, offline."""
        try:
            state = json.loads((self.run_dir / "wandb_run.json").read_bytes())
        except FileNotFoundError:
            state = {"id": os.urandom(4).hex(), "nimg": -1}
        self._id, self._told = state["id"], state["nimg"]
        try:
            self._init(self.mode)
        except Exception as error:
            if self.mode != "online":
                raise
            log.warning("wandb cannot go online (%s); logging offline, for `wandb sync` later", error)
            self._init("offline")
        self._remember(self._told)
        about = {**_settings(self.run_dir), "provenance": provenance()}
        self._run.config.update(about, allow_val_change=True)

    def _init(self, mode: Literal["offline", "online", "disabled"]) -> None:
        import wandb

        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity,
            name=self.run_dir.name,
            id=self._id,
            resume="allow",
            dir=str(self.run_dir),
            settings=wandb.Settings(init_timeout=self.timeout),
        )

    def _tell(self, nimg: int, values: Mapping[str, Any]) -> None:
        """Add to the row of `nimg`, unless an earlier process has begun it."""
        if nimg <= self._told:
            return
        if nimg > self._nimg:
            self._remember(nimg)
        self._run.log(values, step=nimg)

    def _remember(self, nimg: int) -> None:
        self._nimg = nimg
        if self.mode == "disabled":
            return
        write_whole(self.run_dir / "wandb_run.json", json.dumps({"id": self._id, "nimg": nimg}).encode())


class TensorBoardLogger:
    """Log to TensorBoard event files in `run_dir/tensorboard`; the losses by noise level in one chart, too.

    The configuration, the versions and the git commit stand under Text, the settings under HParams as well,
    by which the runs of a sweep are compared. A run that was begun with another logger is there from its
    beginning.

    Raises UserError where the package is missing.
    """

    def __init__(self, run_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "logger=tensorboard needs the package tensorboard: pip install 'scoregen[tensorboard]'"
            ) from error
        self._make = SummaryWriter
        self.run_dir = Path(run_dir)
        self._writer: Any = None

    def start(self, nimg: int) -> None:
        """Begin, or make TensorBoard drop what an earlier process recorded after `nimg`."""
        folder = self.run_dir / "tensorboard"
        missed = [] if folder.exists() else read_log(self.run_dir)
        self._writer = self._make(str(folder), purge_step=nimg + 1)
        self._writer.add_custom_scalars(LAYOUT)
        versions = "\n".join(f"{name}: {version}" for name, version in provenance().items())
        for name, text in {"config": _config(self.run_dir), "provenance": versions}.items():
            self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), nimg)
        self._compare_by_settings()
        for row in missed:
            self.log(row.pop("nimg"), row)

    def _compare_by_settings(self) -> None:
        """A row under HParams, in this run's own files, where `add_hparams` would make a run beside it."""
        from torch.utils.tensorboard.summary import hparams

        settings = config.flatten(_settings(self.run_dir))
        plain = {
            key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()
        }
        for summary in hparams(plain, {"loss": 0}):
            self._writer.file_writer.add_summary(summary)

    def log(self, nimg: int, scalars: Scalars) -> None:
        """Record named numbers at `nimg` images."""
        for name, value in flatten(scalars):
            if name != "end":
                self._writer.add_scalar(name, value, nimg)
        self._writer.flush()

    def image(self, nimg: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C]."""
        self._writer.add_image(name, image, nimg, dataformats="HWC")

    def results(self, nimg: int, scalars: Scalars) -> None:
        """Record them at `nimg`, in a file of their own."""
        with self._make(str(self.run_dir / "tensorboard")) as writer:
            for name, value in flatten(scalars):
                writer.add_scalar(f"{EVALUATE}/{name}", value, nimg)

    def close(self) -> None:
        """Finish what is pending."""
        if self._writer is not None:
            self._writer.close()
