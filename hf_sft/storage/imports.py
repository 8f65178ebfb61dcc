"""What a process of ours imports: once, for good, and without work that it did not ask for."""

import contextlib
import gc
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """What is imported stays, and the garbage collector never looks at it: not meanwhile, not later, not on leaving.

    For what needs transformers, which comes first, with two shortcuts; a version that has no use for them goes without.
    """
    gc.disable()
    try:
        with contextlib.suppress(ImportError, AttributeError):
            with _later("scipy.optimize", "linear_sum_assignment"):  # of object detection: 0.15 s
                import transformers.loss.loss_utils  # noqa: F401
            _list_models_once()
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _later(module: str, function: str) -> Iterator[None]:
    """Who asks a module for this function meanwhile gets one that imports the module when it is called; what else is
    asked for is there at once."""
    if module in sys.modules:
        yield
        return
    stand_in = ModuleType(module)

    def load() -> ModuleType:
        if sys.modules.get(module) is stand_in:
            del sys.modules[module]
        return import_module(module)

    def call(*given: Any, **named: Any) -> Any:
        return getattr(load(), function)(*given, **named)

    def get(name: str) -> Any:
        if name.startswith("__"):  # who looks through all modules, as `inspect` does, does not ask for this one
            raise AttributeError(name)
        return getattr(load(), name)

    vars(stand_in).update({function: call, "__getattr__": get})
    sys.modules[module] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(module) is stand_in:
            del sys.modules[module]


def _list_models_once() -> None:
    """transformers reads its 549 folders of models for `transformers` and again for `transformers.models`, since it keeps
    only 128 of them, and the list of all: that is given the second time too. 0.15 s."""
    import transformers
    from transformers.utils import import_utils

    folder = Path(transformers.__file__).parent / "models"
    read = import_utils.create_import_structure_from_path
    import_utils.create_import_structure_from_path = lambda path: read(
        folder if Path(path) == folder / "__init__.py" else path
    )
    try:
        import transformers.models
    finally:
        import_utils.create_import_structure_from_path = read
