"""Typed notebook parameters: read the tagged cell, check and coerce what a user sets.

papermill guesses types from text and only warns about unknown names, so nothing reaches
it that has not passed here.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from awqbench.errors import NotebookError, ParameterError
from awqbench.report.notebooks import tags

_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict}
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


@dataclass(frozen=True)
class Parameter:
    """One name of a notebook's `parameters` cell.

    Attributes
    ----------
    name : str
    type_name : str
        ``bool``, ``int``, ``float``, ``str``, ``list`` or ``dict``.
    default : object
        The literal in the cell.
    help : str
        The comment on its line: meaning, unit, range.
    choices : tuple
        The values of a ``Literal[...]`` annotation; empty for any.
    item_type : str
        Type of the elements of a list; empty for any.
    optional : bool
        Whether None is allowed.
    """

    name: str
    type_name: str
    default: Any
    help: str = ""
    choices: tuple[Any, ...] = ()
    item_type: str = ""
    optional: bool = False


def read_parameters(notebook: Mapping[str, Any], name: str = "notebook") -> dict[str, Parameter]:
    """Read a notebook's `parameters` cell without running it.

    Parameters
    ----------
    notebook : mapping
        As `awqbench.report.notebooks.read_notebook` gives it.
    name : str
        Of the notebook, for errors.

    Returns
    -------
    dict of str to Parameter
        In the cell's order; empty if no cell is tagged.

    Raises
    ------
    NotebookError
        If two cells are tagged, or the cell holds more than names and literals.

    Examples
    --------
    >>> cell = {"source": "bits: int = 4  # bits per code", "metadata": {"tags": ["parameters"]}}
    >>> read_parameters({"cells": [cell]})["bits"].help
    'bits per code'
    """
    cells = [cell for cell in notebook["cells"] if "parameters" in tags(cell)]
    if len(cells) > 1:
        raise NotebookError(f"{name} has {len(cells)} cells tagged 'parameters'; keep one.")
    if not cells:
        return {}
    source = cells[0]["source"]
    try:
        statements = ast.parse(source).body
        comments = _comments(source)
        found = [_parameter(statement, comments) for statement in statements]
    except (SyntaxError, ValueError) as error:
        raise NotebookError(f"parameters cell of {name}: {error}.") from error
    return {parameter.name: parameter for parameter in found}


def _comments(source: str) -> dict[int, str]:
    lines = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in lines if t.type == tokenize.COMMENT}


def _parameter(statement: ast.stmt, comments: Mapping[int, str]) -> Parameter:
    where = f"line {statement.lineno}"
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target, annotation = statement.target, statement.annotation
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, annotation = statement.targets[0], None
    else:
        raise ValueError(f"{where} is not 'name: type = literal'")
    if not isinstance(target, ast.Name):
        raise ValueError(f"{where} does not set a plain name")
    try:
        default = ast.literal_eval(statement.value)
    except ValueError:
        raise ValueError(f"{where}: the default of {target.id} is not a literal") from None
    kind = _read_annotation(annotation, default, f"{where}: {target.id}")
    if kind["type_name"] == "list" and not kind.get("item_type") and default:
        items = {type(item).__name__ for item in default}
        kind["item_type"] = items.pop() if len(items) == 1 else ""
    parameter = Parameter(target.id, default=default, **kind)
    try:
        coerce(parameter, default)
    except ParameterError as error:
        raise ValueError(f"{where}: the default does not fit: {error}") from None
    return Parameter(
        target.id, default=default, help=comments.get(statement.end_lineno, ""), **kind
    )


def _read_annotation(node: ast.expr | None, default: Any, where: str) -> dict[str, Any]:
    """Translate an annotation; without one the default's type is the type."""
    if node is None:
        return {"type_name": _known(type(default).__name__, where)}
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [side for side in (node.left, node.right) if ast.unparse(side) != "None"]
        if len(sides) == 1:
            return {**_read_annotation(sides[0], default, where), "optional": True}
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value).rpartition(".")[2]
        if outer == "Optional":
            return {**_read_annotation(node.slice, default, where), "optional": True}
        if outer == "Literal":
            values = ast.literal_eval(node.slice)
            choices = values if isinstance(values, tuple) else (values,)
            return {"type_name": _known(type(choices[0]).__name__, where), "choices": choices}
        if outer == "list":
            return {"type_name": "list", "item_type": _known(ast.unparse(node.slice), where)}
        return {"type_name": _known(outer, where)}
    return {"type_name": _known(ast.unparse(node), where)}


def _known(type_name: str, where: str) -> str:
    if type_name not in _TYPES:
        raise ValueError(f"{where} has type {type_name}; use one of {', '.join(_TYPES)}")
    return type_name


def parse_settings(items: Sequence[str]) -> dict[str, str]:
    """Split ``name=value`` strings as they come from a command line.

    Parameters
    ----------
    items : sequence of str

    Returns
    -------
    dict of str to str

    Raises
    ------
    ParameterError
        If an item has no ``=`` or no name, or a name comes twice.

    Examples
    --------
    >>> parse_settings(["bits=3", "model=a=b"])
    {'bits': '3', 'model': 'a=b'}
    """
    settings: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ParameterError(f"{item!r} is not name=value; write for instance -p bits=3.")
        if name in settings:
            raise ParameterError(f"parameter {name!r} is set twice; give it once.")
        settings[name] = value
    return settings


def resolve_parameters(
    settings: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Parameter]]
) -> dict[str, dict[str, Any]]:
    """Give every notebook its effective parameters: defaults, and the settings it knows.

    Parameters
    ----------
    settings : mapping of str to object
        Text from a command line, or values already typed.
    schemas : mapping of str to mapping
        Per notebook, what `read_parameters` gave.

    Returns
    -------
    dict of str to dict
        Per notebook, every parameter's value.

    Raises
    ------
    ParameterError
        If no notebook of `schemas` knows a name, or a value does not fit its type.
    """
    known = sorted({name for schema in schemas.values() for name in schema} - {"out_dir"})
    for name in settings:
        if name == "out_dir":
            raise ParameterError("parameter 'out_dir' is filled in by the report; use --out.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ParameterError(
                f"no parameter {name!r} in {', '.join(schemas)}; {hint}"
                f"allowed: {', '.join(known) or 'none'}."
            )
    return {
        notebook: {
            name: coerce(parameter, settings[name]) if name in settings else parameter.default
            for name, parameter in schema.items()
        }
        for notebook, schema in schemas.items()
    }


def coerce(parameter: Parameter, value: Any) -> Any:
    """Turn a setting into the parameter's type, or say why it does not fit.

    Parameters
    ----------
    parameter : Parameter
    value : object
        Text is parsed by the type: YAML (and so JSON) for a list or dict, where ``32,64``
        is also a list. Anything else must have the type already.

    Returns
    -------
    object
        Plain JSON data: no tuples, NumPy scalars or paths.

    Raises
    ------
    ParameterError
        If the text cannot be read as the type, or a value is outside the choices.
    """
    if parameter.optional and (value is None or value in ("None", "null")):
        return None
    if isinstance(value, str) and parameter.type_name != "str":
        value = _parse(parameter, value)
    value = _typed(parameter.name, parameter.type_name, value)
    if parameter.item_type:
        value = [_typed(f"{parameter.name}[...]", parameter.item_type, item) for item in value]
    if parameter.choices and value not in parameter.choices:
        raise ParameterError(
            f"parameter {parameter.name!r} is {value!r}; "
            f"choose one of {', '.join(map(repr, parameter.choices))}."
        )
    _plain(parameter.name, value)
    return value


def _parse(parameter: Parameter, text: str) -> Any:
    wanted, text = parameter.type_name, text.strip()
    if wanted == "bool" and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    try:
        if wanted in ("int", "float"):
            return _TYPES[wanted](text)
        if wanted in ("list", "dict"):
            return _load_yaml(text if wanted == "dict" or text.startswith("[") else f"[{text}]")
    except ValueError:
        pass
    raise ParameterError(f"parameter {parameter.name!r} is {text!r}, not {_article(wanted)}.")


def _load_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _typed(name: str, wanted: str, value: Any) -> Any:
    if wanted == "float" and type(value) is int:
        value = float(value)
    if type(value) is not _TYPES[wanted]:
        raise ParameterError(
            f"parameter {name!r} is {value!r} ({type(value).__name__}), not {_article(wanted)}."
        )
    if wanted == "float" and not math.isfinite(value):
        raise ParameterError(f"parameter {name!r} is {value}; give a finite number.")
    return value


def _plain(name: str, value: Any) -> None:
    """Refuse what JSON would change: a tuple reaches a notebook as a string."""
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ParameterError(f"parameter {name!r} is {value!r}: use plain numbers, text, lists.")


def _article(type_name: str) -> str:
    return f"an {type_name}" if type_name == "int" else f"a {type_name}"
