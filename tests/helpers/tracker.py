"""A stand-in for a tracker of experiments: a module that notes its calls."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


def stand_in(monkeypatch, name: str) -> list[tuple]:
    """What is called on the module `name` from now on, in order: (function, arguments by position, by name)."""
    calls: list[tuple] = []
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="here")
    for function in ("init", "log", "finish"):
        setattr(module, function, lambda *args, _name=function, **named: calls.append((_name, args, named)))
    monkeypatch.setitem(sys.modules, name, module)
    return calls
