"""Laws of score norms, and of the command that fits detectors to them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.detection.command import fit_shape, load_set
from scoregen.detection.msma import Msma, geometric, main, norms_of, score_norms
from scoregen.errors import UserError
from scoregen.rng import generator


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def test_the_sheets_values_of_a_mixture_with_a_rare_mode() -> None:
    """.95 N(10, 4) + .05 N(50, 4): the largest scale alone tells the rare mode from the other."""
    mixture = GaussianMixtureDenoiser(
        torch.tensor([[10.0], [50.0]], dtype=torch.float64),
        torch.tensor(4.0, dtype=torch.float64),
        weights=torch.tensor([0.95, 0.05], dtype=torch.float64),
    )
    x = torch.tensor([9, 10, 11, 29, 30, 31, 49, 50, 51], dtype=torch.float64)[:, None]
    expected = [
        [0.02494, 0, 0.02494, 0.47381, 0.44888, 0.47293, 0.02494, 0, 0.02494],
        [0.09622, 0.00009, 0.09602, 1.69389, 1.73077, 1.74320, 0.04778, 0.03306, 0.11872],
        [0.06245, 0.01428, 0.03375, 0.85049, 0.89109, 0.93086, 1.42240, 1.43360, 1.44307],
    ]
    norms = score_norms(mixture, x, (0.1, 10.0, 20.0))
    torch.testing.assert_close(norms.T, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)
    assert norms[7, 0] < 1e-6
    assert norms[7, 2] > 40 * norms[1, 2]


def test_norms_of_a_gaussian_in_closed_form() -> None:
    """sigma ||x|| / (v + sigma^2) for x ~ N(0, v I)."""
    x, sigmas = normal(5, 3, 2, 2), (2.0, 0.3, 0.02)
    denoiser = GaussianDenoiser(
        torch.zeros(3, 2, 2, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    )
    expected = [sigma * x.flatten(1).norm(dim=1) / (0.4 + sigma**2) for sigma in sigmas]
    torch.testing.assert_close(score_norms(denoiser, x, sigmas), torch.stack(expected, 1))


def test_batches_do_not_show() -> None:
    denoiser, x = GaussianDenoiser(torch.zeros(3), torch.ones(3)), normal(7, 3).float()
    whole = norms_of(denoiser, x, (1.0, 0.1), batch=100, device="cpu")
    assert torch.equal(norms_of(denoiser, x, (1.0, 0.1), batch=2, device="cpu"), whole)


def test_levels_have_equal_ratios_between_their_ends() -> None:
    levels = torch.tensor(geometric(2.0, 0.02, 10), dtype=torch.float64)
    assert (float(levels[0]), float(levels[-1])) == pytest.approx((2.0, 0.02))
    torch.testing.assert_close(
        levels[1:] / levels[:-1], torch.full((9,), 0.01 ** (1 / 9), dtype=torch.float64)
    )


def test_images_of_other_sets_are_shown_in_the_models_shape() -> None:
    colour = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    grey = fit_shape(colour, (1, 4, 4))
    torch.testing.assert_close(grey, torch.full((2, 1, 4, 4), 0.299 - 0.114))
    torch.testing.assert_close(fit_shape(grey, (3, 8, 8)), torch.full((2, 3, 8, 8), 0.299 - 0.114))
    assert fit_shape(colour, (3, 8, 8)) is colour
    with pytest.raises(UserError, match="cannot be shown"):
        fit_shape(normal(4, 2), (3, 8, 8))


def test_noise_sets_are_in_the_models_range() -> None:
    uniform, gaussian = (load_set(name, (1, 8, 8), 500) for name in ("uniform", "gaussian"))
    assert float(uniform.var()) == pytest.approx(1 / 3, rel=0.02)
    assert float((gaussian.abs() == 1).double().mean()) == pytest.approx(0.3173, abs=0.01)


def test_a_file_keeps_all_detectors(tmp_path: Path) -> None:
    features = normal(300, 3).square()
    msma = Msma.fit(features[:200], (1.0, 0.1, 0.01), about={"inliers": 200})
    msma.save(tmp_path / "a.msma")
    again = Msma.load(tmp_path / "a.msma")
    assert (again.sigmas, again.about) == (msma.sigmas, {"inliers": 200})
    for name, scores in msma(features[200:]).items():
        assert torch.equal(again(features[200:])[name], scores)


def test_the_command_tells_noise_and_pasted_digits_from_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(tmp_path / "digits.msma"), tmp_path / "scores.json"
    assert main(["fit", "--gaussian", "digits", "--out", file, "--num", "700", "--sigmas", "2,0.1,4"]) == 0
    assert main(["score", file, "--outliers", "uniform,gaussian", "--num", "150", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert "Gaussian with the moments of 1,617 samples of digits" in table
    assert "150 held-out images and" in table
    record = json.loads(out.read_text())
    assert all(s["auroc"] > 0.99 for row in record["separation"].values() for s in row.values())
    assert len(record["scores"]["held-out"]["gmm"]) == 150


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fit", "--gaussian", "digits", "--sigmas", "2,0.02"], "give highest, lowest and how many"),
        (["fit", "--gaussian", "digits", "--sigmas", "0.1,2,5"], "two levels at least, falling"),
        (["fit", "--gaussian", "digits", "--num", "0"], "at least 1 each"),
        (["fit", "--gaussian", "didgits"], "no such file or folder"),
        (["score", "none.msma", "--outliers", "unifrom"], "no set of that name"),
        (["score", "none.msma", "--outliers", "uniform"], "There is no weights file none.msma"),
    ],
)
def test_wrong_input_is_told(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*argv, "--out", "x"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
