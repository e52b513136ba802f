"""Laws of the expected perturbation score, of the kernel on it, and of the command."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.detection.eps import main
from scoregen.detection.kernel import DeepKernel, discrepancy, fit_kernel
from scoregen.detection.perturbation import EpsDetector, PerturbationScore
from scoregen.detection.roc import separate
from scoregen.diffusion.schedules import vp_level
from scoregen.errors import UserError
from scoregen.rng import generator


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def isotropic(v: float, *shape: int) -> GaussianDenoiser:
    return GaussianDenoiser(torch.zeros(shape, dtype=torch.float64), torch.tensor(v, dtype=torch.float64))


@pytest.mark.parametrize(
    ("k", "alpha", "sigma"),
    [(1, 0.99995, 0.01049), (5, 0.99963, 0.02736), (20, 0.99701, 0.07721), (50, 0.98517, 0.17156)],
)
def test_the_levels_are_the_published_ones(k: int, alpha: float, sigma: float) -> None:
    level = vp_level(k / 1000)
    got = 1 / (1 + level**2) ** 0.5
    assert (got, got * level) == pytest.approx((alpha, sigma), abs=1e-5)


@pytest.mark.parametrize(
    ("v", "factor", "variance"), [(1.0, 0.998762, 1.2366e-4), (0.25, 3.965759, 1.9345e-3)]
)
def test_the_score_of_gaussian_data_has_the_published_mean_and_noise(
    v: float, factor: float, variance: float
) -> None:
    """E EPS(x) = -c x; the rest is noise, here over 20,000 elements and 4 seeds."""
    x = normal(1, 20_000)
    noise = [PerturbationScore(isotropic(v, 20_000), seed=seed)(x) + factor * x for seed in range(4)]
    values = torch.cat(noise).flatten()
    assert abs(float(values.mean())) < 4 * (variance / len(values)) ** 0.5
    assert float(values.var()) == pytest.approx(variance, rel=4 * (2 / len(values)) ** 0.5 + 1e-4)
    assert float((values * x.expand(4, -1).flatten()).mean()) == pytest.approx(
        0, abs=4 * (variance / 8e4) ** 0.5
    )


@pytest.mark.parametrize(("v", "factor"), [(1.0, 0.998762), (0.25, 3.965759)])
def test_a_perturbation_moves_the_score_of_gaussian_data_by_minus_c_times_itself(
    v: float, factor: float
) -> None:
    x, delta = normal(3, 1, 4, 4), 0.03 * normal(3, 1, 4, 4, key="delta")
    eps = PerturbationScore(isotropic(v, 1, 4, 4))
    torch.testing.assert_close(eps(x + delta) - eps(x), -factor * delta, rtol=2e-6, atol=1e-8)


def test_an_images_score_is_its_own() -> None:
    eps, x = PerturbationScore(isotropic(0.25, 1, 4, 4)), normal(5, 1, 4, 4)
    assert torch.equal(eps.of(x, batch=2, device="cpu"), eps(x))
    assert not torch.allclose(PerturbationScore(eps.denoiser, seed=1)(x), eps(x))


def test_a_model_that_does_not_reach_the_first_level_is_refused() -> None:
    denoiser = isotropic(0.25, 1, 4, 4)
    denoiser.sigma_min = 0.02
    with pytest.raises(UserError, match=r"not from 0\.02 only"):
        PerturbationScore(denoiser)


def kernel_of(x: Tensor) -> DeepKernel:
    kernel = DeepKernel(tuple(x.shape[1:]), seed=3).double()
    kernel.set_widths(x)
    return kernel


def test_the_kernel_is_positive_definite_symmetric_and_one_at_home() -> None:
    x = normal(12, 1, 8, 8)
    with torch.no_grad():
        matrix = kernel_of(x)(x, x)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(12, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-9


def test_the_kernel_is_the_formula_with_its_parameters() -> None:
    x, y = normal(4, 1, 8, 8), normal(3, 1, 8, 8, key="y")
    kernel = kernel_of(x)
    q, w0, w = 0.01, kernel.log_w0.exp(), kernel.log_w.exp()
    with torch.no_grad():
        a, b = kernel.features(x), kernel.features(y)
        inner = torch.cdist(a, b).square() / w0
        outer = torch.cdist(x.flatten(1), y.flatten(1)).square() / w
        torch.testing.assert_close(
            kernel(x, y), ((1 - q) * (-inner).exp() + q) * (-outer).exp(), rtol=1e-6, atol=1e-12
        )


def test_the_discrepancy_is_the_mean_over_pairs_of_different_samples() -> None:
    xx, yy, xy = normal(3, 6, 6, key="matrices")
    pairs = [xx[i, j] + yy[i, j] - xy[i, j] - xy[j, i] for i in range(6) for j in range(6) if i != j]
    assert float(discrepancy(xx, yy, xy)[0]) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-12)


def test_of_one_distribution_the_discrepancy_is_zero_in_the_mean() -> None:
    z = normal(400, 20, 1, 2, 2)
    kernel = kernel_of(z[0])
    with torch.no_grad():
        values = torch.stack(
            [
                discrepancy(kernel(a, a), kernel(b, b), kernel(a, b))[0]
                for a, b in zip(z[::2], z[1::2], strict=True)
            ]
        )
    assert abs(float(values.mean())) < 4 * float(values.std()) / len(values) ** 0.5
    assert (values < 0).any()
    same = kernel(z[0], z[0]).detach()
    assert float(discrepancy(same, same, same)[0]) == pytest.approx(0, abs=1e-12)


def test_the_variance_where_sets_differ_is_that_of_the_discrepancy() -> None:
    """4 var_i(mean_j h_ij) / n, against the spread over independent sets."""
    z, n = normal(300, 60, 1, 2, 2), 60
    kernel = kernel_of(z[0])
    with torch.no_grad():
        pairs = [(a, b + 1.5) for a, b in zip(z[::2], z[1::2], strict=True)]
        found = [discrepancy(kernel(a, a), kernel(b, b), kernel(a, b)) for a, b in pairs]
    values, variances = (torch.stack(part) for part in zip(*found, strict=True))
    assert float(variances.mean()) / n == pytest.approx(float(values.var()), rel=0.35)


def test_the_mean_kernel_ranks_as_the_squared_discrepancy_does() -> None:
    reference, x = normal(30, 1, 8, 8), normal(9, 1, 8, 8, key="y")
    kernel = kernel_of(reference)
    within = kernel(reference, reference).mean()
    biased = torch.stack([within - 2 * kernel(reference, y[None]).mean() + 1 for y in x])
    scores = EpsDetector(kernel, reference, {})(x)
    assert torch.equal(scores.argsort(), biased.argsort())


def test_learning_finds_the_pattern_that_outliers_share() -> None:
    """A checkerboard of half the amplitude of the noise that it is in; untrained features do not see it."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 - 0.5
    plain = [normal(200, 1, 8, 8, key=key).float() for key in ("x", "y", "z", "w")]
    kernel, raw = fit_kernel(plain[0], plain[1] + board, epochs=15, batch=100), DeepKernel((1, 8, 8))
    raw.set_widths(plain[0])
    areas = []
    for k in (kernel, raw):
        detector = EpsDetector(k.requires_grad_(False), plain[0], {})
        areas.append(separate(detector(plain[2]), detector(plain[3] + board)).auroc)
    assert areas[0] > 0.95
    assert areas[0] > areas[1] + 0.1


def test_a_detector_is_its_file(tmp_path: Path) -> None:
    x = normal(10, 1, 8, 8).float()
    kernel = DeepKernel((1, 8, 8), seed=5)
    kernel.set_widths(x)
    detector = EpsDetector(kernel, x[:6], {"seed": 5})
    detector.save(tmp_path / "a.eps")
    again = EpsDetector.load(tmp_path / "a.eps")
    assert torch.equal(again(x), detector(x))
    assert again.about == {"seed": 5}


def test_few_images_and_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="4 images at least"):
        fit_kernel(normal(3, 1, 8, 8), normal(9, 1, 8, 8))
    with pytest.raises(UserError, match="not finite"):
        fit_kernel(normal(9, 1, 8, 8), normal(9, 1, 8, 8) / 0)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the digits, trained for some seconds."""
    from scoregen.cli.train import main as train

    folder = tmp_path_factory.mktemp("runs") / "judge"
    args = [
        "experiment=digits_classifier",
        "network.model_channels=8",
        "trainer.total=6400",
        f"run_dir={folder}",
    ]
    assert train([*args, "device=cpu", "hooks.status.every=6400"]) == 0
    return folder


def test_the_command_finds_attacked_digits_and_more_so_the_stronger_the_attack(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(tmp_path / "digits.eps"), tmp_path / "table.json"
    model = ["--gaussian", "digits", "--device", "cpu"]
    fit = ["fit", *model, "--classifier", str(judge), "--out", file, "--num", "400", "--epsilons", "16"]
    assert main([*fit, "--epochs", "20"]) == 0
    score = [
        "score",
        file,
        "--attacks",
        "fgsm,pgd",
        "--epsilons",
        "2,8,32",
        "--num",
        "150",
        "--device",
        "cpu",
    ]
    assert main([*score, "--out", str(out)]) == 0
    assert "150 held-out images and" in capsys.readouterr().out
    table = json.loads(out.read_text())["table"]
    for attack in ("fgsm", "pgd"):
        rows = [table[f"{attack} {level}/255"] for level in (2, 8, 32)]
        assert rows[2]["eps"]["auroc"] > 0.9
        assert rows[2]["changed"] > 0.3
        for weaker, stronger in pairwise(rows):
            assert weaker["eps"]["auroc"] < stronger["eps"]["auroc"] + 0.02
            assert weaker["changed"] <= stronger["changed"]


def test_attacks_share_images_that_do_not_divide_but_each_needs_one(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--gaussian", "digits", "--classifier", str(judge), "--device", "cpu"]
    fit = ["fit", *model, "--out", str(tmp_path / "x.eps"), "--epochs", "1"]
    assert main([*fit, "--num", "12", "--epsilons", "1,2,4"]) == 0  # 9 images for 6 attacks
    assert EpsDetector.load(tmp_path / "x.eps").about["images"] == 9
    assert main([*fit, "--num", "8", "--epsilons", "1,2,4,8"]) == 2
    assert "6 images to learn from cannot be shared by 8 attacks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fit", "--classifier", "c", "--attacks", "fsgm"], "attacks not known: fsgm; allowed: fgsm, "),
        (["fit", "--classifier", "c", "--gaussian", "digits", "--num", "3"], "at least 8 and 1"),
        (["fit", "--classifier", "c", "--gaussian", "digits"], "c: no such folder or file"),
        (["score", "none.eps"], "There is no weights file none.eps"),
        (["score", "none.eps", "--epsilons", "1,x"], "give positive numbers"),
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
