"""The house: which room may know which. Imports are read from the source, those inside functions
too; what is loaded by path or by name is listed here by hand, and nothing else may be.
"""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the top down; a room imports only itself and rooms of lower floors. Rooms of one floor don't
# know each other.
FLOORS = (
    ("benchmarks",),
    ("doors",),
    ("evaluation", "viewer"),
    ("pipeline",),
    ("system",),
    ("exporter",),
    ("textual_inversion", "prompt_processors"),
    ("guidance",),
    ("renderer",),
    ("geometry",),
    ("toyworld", "preprocess"),
    ("pretrained", "data", "kernels"),
    ("files",),
    ("bounds", "events", "git_lfs", "plain"),
    ("host",),
)
DOORS = (
    "__init__.py",
    "animate.py",
    "console/animate124_commands.py",
    "image_preprocess.py",
    "launch.py",
    "pipeline/assets.py",
    "pipeline/door.py",
    "pipeline/result.py",
    "textual-inversion/textual_inversion.py",
    "toyworld/evaluate.py",
)
# what is imported by a computed name or by path: file -> what that may be
BY_NAME = {
    "animate.py": ["pipeline/request.py"],  # before the package is there
    "console/animate124_commands.py": ["animate.py", "launch.py"],
    "exporter/surface.py": [],  # libraries that only exports need
    "geometry/usable.py": [],  # an optional library, to see whether it imports
    "geometry/hash_grid_numba.py": ["geometry/hash_grid_numba_kernels.py"],
    "toyworld/evaluate.py": ["evaluation/suite.py"],
    "host/__init__.py": [
        f"host/threestudio/utils/{name}.py" for name in ("bounds", "events", "git_lfs", "whole")
    ],
    "host/threestudio/extensions.py": ["__init__.py"],  # whatever extension it is told
}
MATHS = {  # they import torch alone (and each other), so that they are tested without any host
    "guidance/sds.py",
    "guidance/noise.py",
    "data/cameras.py",
    "data/frame_times.py",
    "data/trajectories.py",
    "system/losses.py",
    "renderer/compositing.py",
    "geometry/hash_grid_torch.py",
}
FOR_MATHS = {"torch", "jaxtyping", "numpy"}
LONGEST = 60  # lines of a function

OTHER_NAMES = "system/stock_names.py"  # leaves under threestudio's own names: it extends leaves


def sources() -> list[str]:
    """Every module of the house, relative to its root."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        hidden = any(part.startswith(".") or part.endswith(".egg-info") for part in place.parts)
        beside = ("tests", "outputs", "build", "dist", "setup.py")
        if not hidden and place.parts[0] not in beside:
            found.append(place.as_posix())
    return found


@functools.cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def room(file: str) -> str:
    if file in DOORS:
        return "doors"
    return Path(file).parts[0].removesuffix(".py")


def module_file(folder: Path, names: list[str]) -> str | None:
    """The house's file of a module, a package's __init__ among them; None where there is none."""
    place = folder.joinpath(*names)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file() and path.is_relative_to(ROOT):
            return path.relative_to(ROOT).as_posix()
    return None


def imported(file: str, node: ast.Import | ast.ImportFrom) -> set[str]:
    """Files of the house that a statement imports."""
    if isinstance(node, ast.Import):
        asked = [(name.name.split("."), None) for name in node.names]
    else:
        asked = [((node.module or "").split("."), name.name) for name in node.names]
    found = set()
    for names, member in asked:
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = (ROOT / file).parents[node.level - 1]
        elif names[0] == "animate124":
            folder, names = ROOT, names[1:]
        elif names[0] == "threestudio":
            folder = ROOT / "host"
        else:  # a script's neighbour, or a library
            folder = (ROOT / file).parent
            if folder != ROOT / "benchmarks":
                continue
        names = [name for name in names if name]
        whole = module_file(folder, [*names, member]) if member else None
        found.add(whole or module_file(folder, names))
    return {each for each in found if each is not None and each != file}


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Each file of the house -> the files of the house that it imports, wherever in it."""
    graph = {}
    for file in sources():
        statements = [n for n in ast.walk(tree(file)) if isinstance(n, ast.Import | ast.ImportFrom)]
        graph[file] = {target for node in statements for target in imported(file, node)}
        graph[file] |= set(BY_NAME.get(file, []))
    return graph


def floor(file: str) -> int:
    """0 is the ground."""
    return next(len(FLOORS) - i for i, rooms in enumerate(FLOORS) if room(file) in rooms)


def test_every_file_has_a_floor():
    known = {name for rooms in FLOORS for name in rooms}
    assert {room(file) for file in sources()} - {"findings"} <= known


def test_a_room_imports_only_rooms_below():
    up = {
        (file, target)
        for file, targets in arrows().items()
        for target in targets
        if room(file) != room(target)
        and floor(target) >= floor(file)
        and room(file) != "host"  # it loads the extension whose name it is given
    }
    assert not up


def test_the_host_knows_nothing_of_the_extension():
    host = {file: targets for file, targets in arrows().items() if room(file) == "host"}
    assert len(host) > 30
    for file, targets in host.items():
        assert {room(target) for target in targets - set(BY_NAME.get(file, []))} <= {"host"}, file


def test_the_toy_world_knows_cameras_and_files_alone():
    known = {room(t) for f, targets in arrows().items() if room(f) == "toyworld" for t in targets}
    assert known <= {"toyworld", "data", "files"}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(file: str) -> None:
        order[file] = low[file] = len(order)
        path.append(file)
        for target in graph.get(file, ()):
            if target not in order:
                visit(target)
                low[file] = min(low[file], low[target])
            elif target in path:
                low[file] = min(low[file], order[target])
        if low[file] == order[file]:
            group = path[path.index(file) :]
            del path[path.index(file) :]
            if len(group) > 1:
                found.append(sorted(group))

    for file in graph:
        if file not in order:
            visit(file)
    return found


def test_circles_are_found():
    ring = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e", "d"}}
    assert circles(ring) == [["b", "c"]]


def test_nobody_imports_in_a_circle():
    graph = {file: set(targets) for file, targets in arrows().items()}
    graph["host/threestudio/extensions.py"].discard("__init__.py")  # whatever it is told
    assert not circles(graph)


def registers(file: str) -> bool:
    """Whether a module registers something: then it is a leaf, which a YAML names."""
    return any(
        isinstance(node, ast.Call) and ast.unparse(node.func) == "threestudio.register"
        for definition in ast.walk(tree(file))
        if isinstance(definition, ast.ClassDef)
        for node in definition.decorator_list
    )


def test_nobody_imports_a_leaf():
    leaves = {file for file in sources() if registers(file) and room(file) != "host"}
    assert len(leaves) >= 10
    found = {
        (file, target)
        for file, targets in arrows().items()
        for target in targets & leaves
        if file not in (*DOORS, OTHER_NAMES) and room(file) != "benchmarks"
    }
    assert not found


def loads(node: ast.AST) -> bool:
    """Whether it is a call that loads a module by name or by path."""
    loaders = ("import_module", "spec_from_file_location", "run_module", "run_path", "__import__")
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in loaders


def test_whatever_is_loaded_by_name_is_listed():
    found = {file for file in sources() if any(map(loads, ast.walk(tree(file))))}
    assert found == set(BY_NAME)
    for targets in BY_NAME.values():
        assert all((ROOT / target).is_file() for target in targets)


@pytest.mark.parametrize("file", sorted(MATHS))
def test_maths_imports_torch_alone(file):
    assert arrows()[file] <= MATHS
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        else:
            continue
        outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert outside <= FOR_MATHS


def test_no_function_is_too_long():
    long = {
        f"{file}:{node.name}"
        for file in sources()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST
    }
    assert not long


def test_nothing_but_a_door_edits_the_search_path():
    edits = {
        file
        for file in sources()
        if any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
            for node in ast.walk(tree(file))
        )
    }
    assert edits - set(DOORS) == {"host/__init__.py"}


def test_in_the_checkout_a_librarys_package_is_not_taken_for_a_room(tmp_path):
    """transformers and diffusers import `kernels` where somebody has that installed."""
    (tmp_path / "kernels.py").touch()
    places = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(tmp_path)])
    code = "import animate124, kernels; print(kernels.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "kernels.py"), done.stderr
