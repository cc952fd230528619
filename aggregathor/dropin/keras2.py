"""Refuses Keras 2, the package ``tf_keras``: only Keras 3 takes part.

Its optimizers, ``fit``, callbacks and files are others than Keras 3's. A job would train every rank
by itself. Libraries that import it, and do not train by it, are left alone.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from aggregathor.errors import UserError

_NAME = "tf_keras"
_REFUSED = (
    "tf_keras, which is Keras 2, takes no part in a job: use Keras 3 (import keras, without "
    "TF_USE_LEGACY_KERAS), or in a loop of your own agt.apply(zip(gradients, variables), "
    "optimizer.apply_gradients)."
)


def refuse(is_refused: Callable[[], bool]) -> None:
    """Makes training by ``tf_keras`` raise ``UserError``, once it is imported.

    Args:
      is_refused: whether what trains now shall take part.
    """
    if _NAME in sys.modules:
        _patch(sys.modules[_NAME], is_refused)
    else:
        sys.meta_path.insert(0, _Finder(is_refused))


def check_environment() -> None:
    """Raises ``UserError`` if the script asks for Keras 2 where it has Keras 3 already."""
    asks = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")
    if asks and _NAME not in sys.modules:
        raise UserError(_REFUSED)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``tf_keras`` where the others do, and patches it once it is loaded."""

    def __init__(self, is_refused: Callable[[], bool]) -> None:
        self._is_refused = is_refused

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(_NAME)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_patch(module: ModuleType) -> None:
                execute(module)
                _patch(module, self._is_refused)

            spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _patch(module: Any, is_refused: Callable[[], bool]) -> None:
    optimizers = (module.optimizers.Optimizer, module.optimizers.legacy.Optimizer)
    for kind, name in ((module.Model, "fit"), *((each, "apply_gradients") for each in optimizers)):
        setattr(kind, name, _refusing(getattr(kind, name), is_refused))


def _refusing(method: Callable[..., Any], is_refused: Callable[[], bool]) -> Callable[..., Any]:
    def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_refused():
            raise UserError(_REFUSED)
        return method(self, *args, **kwargs)

    return refusing
