"""Laws of the configuration: every choice is valid, every mistake is told at once."""

import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scoregen import config
from scoregen.errors import UserError
from scoregen.trust import refuse_foreign
from scoregen.validation import check_choice, validate

CHOICES = [f"{group}={name}" for group, names in config.groups().items() for name in names]


def problems_of(*overrides: str, processes: int = 1) -> str:
    cfg, problems = config.compose(overrides)
    with pytest.raises(UserError) as caught:
        config.refuse(problems + validate(cfg, processes))
    return str(caught.value)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_is_valid_and_may_stand_in_a_weights_file(choice: str) -> None:
    cfg, problems = config.compose([choice])
    assert problems + validate(cfg) == []
    refuse_foreign(cfg, "here")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.p_mean=abc", "objective.p_mean=abc: a number is expected"),
        ("+objective.pmeen=1", "objective.pmeen=1: unknown key; did you mean p_mean?"),
        ("objective.pmeen=1", "did you mean p_mean? allowed: p_mean, p_std, sigma_data"),
        ("objective=denoisng", "objective=denoisng: no such objective; did you mean denoising?"),
        ("trainer.batch=-3", "trainer.batch=-3: an integer at least 1 is expected"),
        ("trainer.batch=1.5", "trainer.batch=1.5: an integer at least 1 is expected"),
        ("trainer.microbatch=7", "must divide the 64 images of each process"),
        ("trainer.compile=1", "trainer.compile=1: true or false or one of reduce-overhead is expected"),
        ("device=tpu", "device=tpu: one of auto, cpu, cuda, mps is expected"),
        ("precision=fp8", "one of fp32, bf16, fp16"),
        ("sampler.steps=0", "sampler.steps=0: an integer at least 1"),
        ("sampler.grid.rho=x", "sampler.grid.rho=x: a number"),
        ("hooks.chekpoint.every=5", "did you mean checkpoint?"),
        ("hooks.status.evry=5", "hooks.status.evry=5: unknown key; did you mean every?"),
        ("ema.sigma_rels=[0.1]", "unknown key"),
        ("network.channels=3", "network.channels=3: is set by the framework"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: a list of 2, each item a number"),
        ("network.channel_mult=[0]", "a list, each item an integer at least 1 is expected"),
        ("codec.path=vae", "that says what to build; choose one first with codec=autoencoder"),
        ("trianer.batch=3", "did you mean trainer?"),
        ("trainer=3", "a group of keys, not a value"),
        ("trainer=null", "trainer=null: is needed"),
        ("sampler.grid=null", "sampler.grid=None: SigmaGrid is expected"),
        ("network._target_=scoregen.networks.Unet", "cannot be imported"),
        ("network._target_=os.nothing.Here", "cannot be imported"),
        ("seed", "write key=value"),
    ],
)
def test_each_mistake_is_named_with_what_is_allowed(override: str, said: str) -> None:
    assert said in problems_of(override)


def test_a_group_that_does_not_exist_is_told_once() -> None:
    assert problems_of("trianer.batch=3").startswith("1 problem")


def test_all_mistakes_are_told_at_once() -> None:
    text = problems_of("objective=denoisng", "trainer.batch=-3", "+objective.pmeen=1", "seed=x")
    assert text.startswith("4 problems")
    assert all(key in text for key in ("denoisng", "trainer.batch=-3", "pmeen", "seed=x"))


def test_a_batch_that_the_processes_do_not_divide_is_refused() -> None:
    assert "multiple of the 3 processes" in problems_of("trainer.batch=64", processes=3)
    said = problems_of("trainer.batch=64", "trainer.microbatch=64", processes=2)
    assert "must divide the 32 images of each process" in said


@pytest.mark.parametrize("value", ["a=b", "x,y", "{odd", "with space", "C:/Bilder/übung.zip", "1e-3"])
def test_values_are_taken_as_written(value: str) -> None:
    cfg, problems = config.compose(["data=cifar10", f"data.root={value}"])
    assert problems == []
    assert cfg.data.root == (0.001 if value == "1e-3" else value)


def test_saved_configurations_are_read_back_equal() -> None:
    cfg, _ = config.compose(["experiment=cifar_edm", "seed=3"])
    again = config.from_yaml(config.to_yaml(cfg), "here")
    assert config.to_container(again) == config.to_container(cfg)
    assert config.diff(cfg, again) == []


@pytest.mark.parametrize("text", ["", "hello", "- a", "a: [1", "trainer: ${b}", "a: 1", "\0"])
def test_text_that_is_no_configuration_is_refused_by_its_file(text: str) -> None:
    with pytest.raises(UserError, match="x is damaged"):
        config.from_yaml(text, "x")


@pytest.mark.parametrize(
    "override",
    [
        "precond._target_=os.system",
        "network.anything=[{_target_: torch.load, f: x}]",
        "data.deep.down._target_=scoregen.files.write_file",
        "sampler._target_=scoregen.training.lock.Path",
    ],
)
def test_a_weights_file_may_not_choose_code(override: str) -> None:
    cfg, problems = config.compose([override])
    assert problems == []
    target = override.split("_target_")[1].strip("=: ").split(",")[0]
    with pytest.raises(UserError, match=target):
        refuse_foreign(cfg, "here")


@pytest.mark.parametrize("part", ["objective", "optimizer", "hooks.mine"])
def test_what_a_model_was_trained_by_is_not_asked_of_its_weights(part: str) -> None:
    cfg, _ = config.compose([f"{part}._target_=mine.Class"])
    refuse_foreign(cfg, "here")
    with pytest.raises(UserError, match=r"mine\.Class"):  # where it is built, too
        refuse_foreign(cfg, "here", parts=map(str, cfg))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network of one's own, where one stands."""
    (tmp_path / "conf" / "network").mkdir(parents=True)
    (tmp_path / "conf" / "network" / "narrow.yaml").write_text("_target_: own_narrow.Narrow\nwidth: 5\n")
    (tmp_path / "own_narrow.py").write_text(
        "from scoregen.networks.mlp import MLP\n\n\nclass Narrow(MLP):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return tmp_path / "conf"


def test_a_folder_where_one_stands_adds_choices(own: Path) -> None:
    cfg, problems = config.compose(["data=digits", "network=narrow", "network.depth=1"])
    assert problems + validate(cfg) == []
    assert cfg.network == {"_target_": "own_narrow.Narrow", "width": 5, "depth": 1}
    assert config.choose("network", "narrow")[0].width == 5
    refuse_foreign(cfg, "here")
    assert "narrow" in config.groups()["network"]
    assert "allowed: adm, classifier, ddpmpp" in str(config.compose(["network=nope"])[1][0])


def test_other_programs_folders_are_left_alone_and_names_are_taken_once(own: Path) -> None:
    (own / "model").mkdir()
    (own / "model" / "gpt.yaml").write_text("a: 1")
    assert "model" not in config.groups()
    same = config.conf_dir() / "network" / "mlp.yaml"
    (own / "network" / "mlp.yaml").write_bytes(same.read_bytes())
    assert config.compose(["network=mlp"])[1] == []
    (own / "network" / "mlp.yaml").write_text("_target_: own_narrow.Narrow")
    (own / "network" / "torn.yaml").write_text("a: [1")
    cfg, problems = config.compose(["network=narrow"])  # what is not chosen does not matter
    assert problems == []
    refuse_foreign(cfg, "here")
    with pytest.raises(UserError, match=r"network/mlp\.yaml has the name of a choice of the package"):
        config.compose(["network=mlp"])
    with pytest.raises(UserError, match=r"network/torn\.yaml is no YAML"):
        config.compose(["network=torn"])


@pytest.mark.parametrize("place", ["it's", "a b", "a,b=[c]", "${x}", 'say "so"'])
def test_the_folder_where_one_stands_may_have_any_name(
    own: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    moved = own.parent / place
    own.parent.joinpath("conf").rename(moved.parent / "away")
    moved.mkdir()
    (moved.parent / "away").rename(moved / "conf")
    monkeypatch.chdir(moved)
    assert config.compose(["network=narrow"])[0].network.width == 5


@pytest.mark.parametrize("order", [1, -1])
def test_another_class_keeps_the_settings_that_it_takes(order: int) -> None:
    overrides = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=0.5", "optimizer.momentum=0.9"]
    cfg, problems = config.compose(["optimizer.weight_decay=0.1", *overrides[::order]])
    assert problems + validate(cfg) == []
    kept = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1, "fused": True}
    assert cfg.optimizer == {"_target_": "torch.optim.SGD", **kept}
    assert "unknown key" in problems_of("optimizer._target_=torch.optim.SGD", "optimizer.eps=1")
    outer = ["sampler._target_=scoregen.samplers.edm.EulerSampler", "sampler.inner._target_=x.Y"]
    assert "sampler.inner" in problems_of("sampler=teleport", *outer[::order])
    euler, _ = config.choose("sampler", "heun", ["_target_=scoregen.samplers.edm.EulerSampler"])
    assert check_choice(euler, "sampler") == []


def test_the_difference_names_each_changed_key_but_the_ignored() -> None:
    old, _ = config.compose([])
    new, _ = config.compose(["seed=1", "trainer.total=5", "network.dropout=0.5"])
    assert config.diff(old, new, ignore=config.MUTABLE) == ["network.dropout: 0.0 -> 0.5", "seed: 0 -> 1"]


def test_the_command_line_wins_over_the_experiment_and_that_over_the_group() -> None:
    group = OmegaConf.load(config.conf_dir() / "optimizer" / "adam.yaml")
    experiment, _ = config.compose(["experiment=digits_edm"])
    line, _ = config.compose(["optimizer.lr=0.5", "experiment=digits_edm"])
    assert group.lr != experiment.optimizer.lr
    assert line.optimizer.lr == 0.5


@pytest.mark.parametrize("name", config.groups()["experiment"])
def test_experiments_are_named_after_their_file(name: str) -> None:
    cfg, _ = config.compose([f"experiment={name}"])
    assert cfg.name == name
    assert cfg.run_dir == f"runs/{name}"


def test_the_page_lists_what_a_run_may_go_on_with() -> None:
    page = (Path(__file__).parents[1] / "docs/configuration.md").read_text()
    listed = page.split("values of these only")[1].split("and with another number of processes")[0]
    names = {name.removesuffix(".*") for name in re.findall(r"`([a-z_.*]+)`", listed)}
    assert names == set(config.MUTABLE)
