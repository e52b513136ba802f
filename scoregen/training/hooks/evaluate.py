"""Metrics of the averaged model at intervals of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from scoregen.errors import UserError
from scoregen.evaluation.evaluator import Evaluator
from scoregen.evaluation.metrics import check_metrics
from scoregen.evaluation.model import evaluate_model
from scoregen.ranges import PositiveInt
from scoregen.training.hooks.base import Hook

if TYPE_CHECKING:
    from scoregen.training.trainer import Trainer

REFERENCES = "references"  # folder in a run, for statistics of its data


class EvaluateHook(Hook):
    """Score images of the averaged weights against the training set, on all processes; into the log.

    Args:
        every: images between two evaluations.
        metrics: names as evaluate.py knows them; a name in the log tells the extractor and n.
        num: images to draw, with seeds 0 to num - 1.
        batch: images at a time on one process.
        weights: file of the Inception weights; null looks in the usual places.
    """

    def __init__(
        self,
        every: PositiveInt | None = None,
        *,
        metrics: tuple[str, ...] = ("fd_scatter",),
        num: PositiveInt = 2000,
        batch: PositiveInt = 250,
        weights: str | None = None,
    ) -> None:
        super().__init__(every)
        check_metrics(metrics)
        if num < 2:
            raise UserError(f"hooks.evaluate.num={num}: a distance needs at least 2 images")
        self.metrics, self.num, self.batch = metrics, num, batch
        self.weights = {"inception": Path(weights)} if weights else {}
        self._evaluator: Evaluator | None = None

    def start(self, trainer: "Trainer") -> None:
        """Find extractors and reference now, so that what is missing is said before training."""
        if self.every is None:
            return
        parallel = trainer.parallel
        self._evaluator = Evaluator(
            self.metrics,
            trainer.stream.dataset,
            weights=self.weights,
            device=parallel.device,
            cache=trainer.run_dir / REFERENCES,
            processes=parallel,
        )
        if parallel.is_main:
            cost = self.num * trainer.sampler.nfe()
            print(f"each evaluation draws {self.num:,} images: {cost:,} network evaluations", flush=True)

    def __call__(self, trainer: "Trainer") -> None:
        assert self._evaluator is not None, "start comes first"
        with trainer.averaged_denoiser() as denoiser:
            results = evaluate_model(
                self._evaluator,
                denoiser,
                trainer.sampler,
                range(self.num),
                batch=self.batch,
                parallel=trainer.parallel,
            )
        values = {name: result.value for name, result in results.items()}
        trainer.log({**values, "evaluated": self.num})
        if trainer.parallel.is_main:
            told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"{trainer.nimg:>12,} img  {told}  (n = {self.num:,})", flush=True)
