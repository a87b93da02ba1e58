import pytest

from awqbench.errors import NotebookError, ParameterError
from awqbench.report.parameters import coerce, parse_settings, read_parameters, resolve_parameters

CELL = """\
model: str = "tiny"  # a folder, a hub id, or tiny
bits: int = 4  # bits per code, 2 to 8
alpha: float = 0.5
zero_point: bool = True
sizes: list = [
    32,
    64,
]  # inputs that share a scale
labels: list[str] = []
options: dict = {}
limit: int | None = None
metric: Literal["kld", "rmse"] = "kld"
expression: str = "a=b"
plain = 3
"""


def schema_of(source):
    return read_parameters({"cells": [{"source": source, "metadata": {"tags": ["parameters"]}}]})


@pytest.fixture
def schema():
    return schema_of(CELL)


def test_reads_types_defaults_and_help(schema):
    assert list(schema)[:3] == ["model", "bits", "alpha"]
    assert schema["bits"].help == "bits per code, 2 to 8"
    assert schema["sizes"].help == "inputs that share a scale"
    assert schema["sizes"].default == [32, 64]
    assert (schema["limit"].type_name, schema["limit"].optional) == ("int", True)
    assert schema["metric"].choices == ("kld", "rmse")
    assert schema["expression"].default == "a=b"
    assert schema["plain"].type_name == "int"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model", "007", "007"),
        ("model", "true", "true"),
        ("bits", "007", 7),
        ("alpha", "1", 1.0),
        ("alpha", "1e-3", 0.001),
        ("zero_point", "no", False),
        ("zero_point", "True", True),
        ("sizes", "32,128", [32, 128]),
        ("sizes", "[-1]", [-1]),
        ("labels", "[a, 'b c']", ["a", "b c"]),
        ("options", "{a: 1}", {"a": 1}),
        ("limit", "None", None),
        ("limit", "5", 5),
        ("metric", "rmse", "rmse"),
    ],
)
def test_coerces_text_by_the_declared_type(schema, name, text, value):
    result = coerce(schema[name], text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("bits", "4.5", "not an int"),
        ("bits", True, "not an int"),
        ("alpha", "nan", "finite"),
        ("zero_point", "2", "not a bool"),
        ("sizes", "32,abc", "not an int"),
        ("sizes", (32, 64), "not a list"),
        ("sizes", "[1", "not a list"),
        ("labels", "[1]", "not a str"),
        ("options", {1: 2}, "plain"),
        ("metric", "ppl", "'kld', 'rmse'"),
    ],
)
def test_refuses_what_does_not_fit(schema, name, value, part):
    with pytest.raises(ParameterError, match=part) as caught:
        coerce(schema[name], value)
    assert name in str(caught.value)


def test_numpy_scalars_are_refused_before_papermill_fails_on_them(schema):
    np = pytest.importorskip("numpy")
    with pytest.raises(ParameterError, match="int64"):
        coerce(schema["bits"], np.int64(3))


def test_unknown_name_suggests_and_lists():
    with pytest.raises(ParameterError) as caught:
        resolve_parameters({"bit": "3"}, {"a": schema_of("bits: int = 4\nseed: int = 0")})
    assert "did you mean 'bits'?" in str(caught.value)
    assert "allowed: bits, seed" in str(caught.value)


def test_a_name_known_to_one_notebook_goes_to_that_one_only():
    schemas = {"a": schema_of("bits: int = 4\nseed: int = 0"), "b": schema_of("seed: int = 0")}
    resolved = resolve_parameters({"bits": "3", "seed": "1"}, schemas)
    assert resolved == {"a": {"bits": 3, "seed": 1}, "b": {"seed": 1}}


def test_out_dir_cannot_be_set_by_hand():
    with pytest.raises(ParameterError, match="--out"):
        resolve_parameters({"out_dir": "x"}, {"a": schema_of('out_dir: str = ""')})


@pytest.mark.parametrize("items", [["bits"], ["=3"], ["bits=3", "bits=4"]])
def test_bad_settings_are_errors(items):
    with pytest.raises(ParameterError):
        parse_settings(items)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("import os", "line 1"),
        ("bits: int = 2 + x", "not a literal"),
        ("bits: int", "line 1"),
        ("bits: ndarray = 3", "ndarray"),
        ("bits: int = 'a'", "does not fit"),
        ("sizes: list = (1, 2)", "does not fit"),
        ("bits: int = ", "invalid syntax"),
    ],
)
def test_a_bad_parameters_cell_is_an_error_that_says_where(source, part):
    with pytest.raises(NotebookError, match=part):
        schema_of(source)


def test_two_parameters_cells_are_an_error():
    cell = {"source": "", "metadata": {"tags": ["parameters"]}}
    with pytest.raises(NotebookError, match="2 cells"):
        read_parameters({"cells": [cell, cell]})
