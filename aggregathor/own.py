"""Rules and attacks of the user's own by name: "module:function", such as "mine:trimmed".

The module is looked for as ``import`` does, from the script's folder on.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from aggregathor.errors import UserError, near


def is_own(name: str) -> bool:
    """Whether a name is that of a function in a module."""
    return ":" in name


def load(name: str, kind: str) -> Any:
    """Imports the module and returns the function.

    Args:
      name: "module:function".
      kind: "rule" or "attack", for messages.

    Raises:
      UserError: there is no such module, it has no such name, or that is no function.
    """
    module_name, function_name = _parts(name, kind)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module's own import
        raise _no_module(name, kind, module_name) from None
    found = vars(module).get(function_name)
    if found is None:
        raise _no_function(name, kind, module_name, function_name, vars(module))
    if not callable(found):
        raise UserError(f"the {kind} {name} is no function, but {type(found).__name__}")
    return found


def look_up(name: str, kind: str) -> ast.stmt | None:
    """Returns what defines the function, read from its source; nothing is imported.

    Returns:
      The statement; None where the module's source says nothing of it.

    Raises:
      UserError: as ``load``, as far as it is known here.
    """
    module_name, function_name = _parts(name, kind)
    if module_name in sys.modules:
        if not hasattr(sys.modules[module_name], function_name):
            raise _no_function(
                name, kind, module_name, function_name, vars(sys.modules[module_name])
            )
        return None
    folders: Collection[str] | None = None
    spec = None
    for part in module_name.split("."):
        spec = importlib.machinery.PathFinder.find_spec(part, list(folders or sys.path))
        if spec is None:
            raise _no_module(name, kind, module_name)
        folders = spec.submodule_search_locations
    if spec is None or not str(spec.origin).endswith(".py"):
        return None
    body = ast.parse(Path(str(spec.origin)).read_bytes()).body
    defined = {word: statement for statement in body for word in _names(statement)}
    if function_name in defined:
        return defined[function_name]
    if "*" in defined or "__getattr__" in defined:
        return None
    raise _no_function(name, kind, module_name, function_name, defined)


def _names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        for each in statement.names:
            yield (each.asname or each.name).partition(".")[0]
    else:  # assignments, also within `if` and `try`
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.FunctionDef):
                yield node.name


def _parts(name: str, kind: str) -> tuple[str, str]:
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"a {kind} of your own is named as module:function, got {name!r}")
    return module, function


def _no_module(name: str, kind: str, module: str) -> UserError:
    where = sys.path[0] or "."
    return UserError(f"the {kind} {name}: there is no module {module!r} in {where} or installed")


def _no_function(
    name: str, kind: str, module: str, function: str, known: Collection[str]
) -> UserError:
    public = [each for each in known if not each.startswith("_")]
    hint = near(function, public) if public else "it defines nothing."
    return UserError(f"the {kind} {name}: {module} has no {function!r}: {hint}")
