"""Imports run one way: a room knows the rooms before it in the list, and none after it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import awqbench

# From the ground up. A package stands for its modules, but for those named apart:
# `bench.machine` (of `bench.cpuinfo` and `bench.isa`) says what machine a run was made on, so
# the rooms that write runs know it.
# `awqbench` is the public names, which reach every room before them.
ORDER = [
    "errors",
    "devices",
    "rooms",
    "progress",
    "sizes",
    "cluster",
    "numerics",
    "grid",
    "packed",
    "formats",
    "text",
    "gemm",
    "model_chatglm",
    "model_experts",
    "model_build",
    "model_weights",
    "model_load",
    "model",
    "quant_linear",
    "linear",
    "bench.cpuinfo",
    "bench.isa",
    "bench.machine",
    "quantize.rules",
    "quantize.settings",
    "quantize.durable",
    "quantize.stopwatch",
    "quantize.folds",
    "quantize.statistics",
    "quantize.choices",
    "quantize.run",
    "quantize",
    "inspect",
    "bench",
    "plots",
    "widgets",
    "magic",
    "awqbench",
    "report",
    "cli",
]
# The one pair that knows each other: torch_ chooses int4pack when it is called, and int4pack
# arranges tokens and folds results by functions of torch_. The edge that is left out.
LATE = {("gemm.torch_", "gemm.int4pack")}
# Packages that at most one module imports.
IN_ONE_MODULE = ("cupy", "dask", "distributed", "papermill", "ipywidgets")

PACKAGE = Path(awqbench.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    """Return a file's dotted name below the package, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in SOURCES}


def room_of(module):
    """Return the entry of ORDER that a module belongs to, the longest that fits."""
    if module == "":
        return "awqbench"
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in ORDER:
            return ".".join(parts[:length])
    return None


def imported_names(path):
    """Return what a file imports anywhere, inside functions and for types too, dotted."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relative to itself"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            target = node.args[0]
            if name in ("import_module", "__import__") and isinstance(target, ast.Constant):
                found.add(target.value)
    return found


def imported_modules(path):
    """Return the modules of this package that a file imports."""
    found = set()
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] != "awqbench":
            continue
        inner = ".".join(parts[1:])
        # `from awqbench.grid import check_settings` names a function of a module.
        found.add(inner if inner in MODULES else ".".join(parts[1:-1]))
    return found


def test_the_reader_of_imports_sees_every_kind(tmp_path):
    source = tmp_path / "sample.py"
    source.write_text(
        "import awqbench.grid as g\nfrom awqbench import numerics\n"
        "def f():\n    from awqbench.formats.layouts import awq\n"
        "    from awqbench.packed import PackedWeight\n    import cupy.cuda\n"
        "    import_module('awqbench.text')\n"
        "if TYPE_CHECKING:\n    from awqbench.model import BlockRunner\n"
    )
    expected = {"grid", "numerics", "formats.layouts.awq", "packed", "text", "model"}
    assert imported_modules(source) == expected
    assert "cupy.cuda" in imported_names(source)


def test_every_module_has_a_place_in_the_order():
    homeless = [module for module in MODULES if room_of(module) is None]
    assert not homeless, f"give {homeless} a place in ORDER"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    rank = ORDER.index(room_of(module))
    for target in imported_modules(MODULES[module]):
        assert ORDER.index(room_of(target)) <= rank, f"{module or 'awqbench'} imports {target}"


def test_public_names_come_from_rooms_before_them():
    for name, home in awqbench._HOME.items():
        module = home.removeprefix("awqbench.")
        assert module in MODULES, f"{name} comes from {home}"
        assert ORDER.index(room_of(module)) < ORDER.index("awqbench")


def test_no_cycles_inside_a_room():
    graph = {module: imported_modules(path) - {module} for module, path in MODULES.items()}
    for module, target in LATE:
        graph[module].remove(target)  # KeyError: the pair is mended, and LATE can go
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", IN_ONE_MODULE)
def test_one_module_knows_it(package):
    users = [
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == package for name in imported_names(path))
    ]
    assert len(users) <= 1, users
