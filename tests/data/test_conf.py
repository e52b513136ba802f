"""Every file of conf/data and conf/augment names a constructor and only arguments that it takes."""

import inspect
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

from scoregen.config import conf_dir, locate

FILES = sorted([*conf_dir().glob("data/*.yaml"), *conf_dir().glob("augment/*.yaml")])


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_arguments_are_those_of_the_constructor(file: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    target = locate(node.pop("_target_"))
    parameters = inspect.signature(target).parameters
    assert set(node) == set(parameters) - {"split"}
    if file.parent.name == "data":
        assert get_args(get_type_hints(target)["split"]) == ("train", "test")


def test_the_embedded_and_generated_sets_need_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCOREGEN_DATA", raising=False)
    for name in ("digits", "checkerboard", "moons", "mixture"):
        node = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"data/{name}.yaml"))
        assert isinstance(node, dict)
        target = locate(node.pop("_target_"))
        train, test = target(**node, split="train"), target(**node, split="test")
        assert train.shape == test.shape
        assert train.fingerprint != test.fingerprint
