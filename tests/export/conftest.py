"""Files as other programs write them: persistent objects of EDM, and calls of anything."""

import sys
from types import ModuleType
from typing import Any

import pytest
from torch import nn

TRAP = "import os; os.environ['SPRUNG'] = 'source'"  # what a file's own source text would do


class Persistent(nn.Module):
    """Pickles as the classes of EDM do: the source of its module, its class's name, its attributes."""

    meta_name: str

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__()
        self.meta_name = name
        self.__dict__.update(attributes)

    def __reduce__(self) -> Any:
        state = {key: value for key, value in self.__dict__.items() if key != "meta_name"}
        meta = {
            "type": "class",
            "version": 6,
            "module_src": TRAP,
            "class_name": self.meta_name,
            "state": state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.fixture
def edm_program(monkeypatch: pytest.MonkeyPatch) -> type[dict]:
    """Let pickles name EDM's functions, of which none may be called; its class of dictionaries."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
        raise AssertionError("the original program's function was called")

    class EasyDict(dict):
        pass

    for package in ("torch_utils", "dnnlib"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    for module, thing in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("SPRUNG", raising=False)
    return EasyDict
