"""The rules of the house that no linter knows: who may import whom, what is documented, what ships."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest
from docs_examples import blocks, run

import devinterp_fast as dif

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "devinterp_fast"
CSRC = ROOT / "csrc"

FLOORS = (
    {"errors", "progress", "_cpu", "_cuda", "_interrupt", "_random", "store"},
    {"_native", "_native_cuda", "_native_cuda_sums", "_reference"},
    {"_ops", "_ops_cuda", "_flat", "_program"},
    {"sampling", "distributed"},
    {"estimators", "curvature", "changepoint"},
    {"transitions", "monitor", "report", "plots"},
    {"watch"},
    {"cli", "compat", "__main__"},
    {"__init__"},
)
"""The rooms, from the ground up. A room imports from its own floor and from those below, and never in a circle."""

INCLUDES = {
    "core": {"core"},
    "cpu": {"cpu", "core"},
    "cuda": {"cuda", "core"},
    "bind": {"bind", "cpu", "cuda", "core"},
}
"""The folders of csrc/ that each folder may include from."""

VENDOR_HEADERS = {
    "core": r"",
    "cpu": r"immintrin\.h|arm_neon\.h|sys/mman\.h",
    "cuda": r"cuda_runtime\.h|cuda\.h",
    "bind": r"pybind11/\w+\.h",
}
"""What each folder may include beside the C++17 standard library; of the system only its pages, in cpu/aligned.hpp."""

LONGEST = 500
LONG_FILES: dict[str, str] = {}
"""Files above that many lines: {path: why splitting would hide the idea}."""

ADDRESS_TAKERS = {
    "_native.py": "the one door to native code",
    "_native_cuda.py": "the same door on the side of a GPU",
    "_native_cuda_sums.py": "its part for the kernels that reduce",
    "sampling/resident.py": "the resident chains' own door: plan, data and chains stay alive between calls",
    "_program/curvature.py": "a Program's state at a checkpoint stays alive between products",
    "sampling/native.py": "the engine's own door: a Program and its run keep data and chains alive between calls",
}
"""Files that may take a tensor's address: {path inside the package: why}."""

PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))
CPP_FILES = sorted(f for f in CSRC.rglob("*") if f.suffix in {".cpp", ".hpp", ".h", ".cu", ".cuh"})


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def room_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def rooms_imported(file: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file it does so; ``if TYPE_CHECKING`` counts too."""
    here = ("devinterp_fast", *file.relative_to(PACKAGE).parent.parts)
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            modules |= {f"{base}.{alias.name}" for alias in node.names}
    ours = [module.split(".") for module in modules if module.split(".")[0] == "devinterp_fast"]
    known = set().union(*FLOORS)
    # `from devinterp_fast import x` names a room, or takes a name from the package's own __init__
    return {parts[1] if len(parts) > 1 and parts[1] in known else "__init__" for parts in ours}


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_python_file_has_a_room():
    rooms = {room_of(file) for file in PYTHON_FILES}
    assert rooms <= set().union(*FLOORS), f"not in FLOORS: {rooms - set().union(*FLOORS)}"


@pytest.mark.parametrize("file", PYTHON_FILES, ids=name_of)
def test_imports_point_down(file):
    room = room_of(file)
    above = {other for other in rooms_imported(file) if floor_of(other) > floor_of(room)}
    assert not above, f"{name_of(file)} (room {room}) imports from above: {sorted(above)}"


def test_no_import_circle_between_rooms():
    needs: dict[str, set[str]] = {}
    for file in PYTHON_FILES:
        needs.setdefault(room_of(file), set()).update(rooms_imported(file) - {room_of(file)})
    while needs:
        free = {room for room, others in needs.items() if not others & needs.keys()}
        assert free, f"rooms import each other in a circle: {sorted(needs)}"
        needs = {room: others for room, others in needs.items() if room not in free}


def test_the_rules_would_see_an_offender(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "sampling" / "bad.py"
    file.parent.mkdir()
    file.write_text(
        "import devinterp_fast\nfrom devinterp_fast import _cpu, LLC\nfrom devinterp_fast.monitor import monitor\n"
        "def f():\n    from ..estimators import llc\n    from . import batches\n"
    )
    assert room_of(file) == "sampling"
    assert rooms_imported(file) == {"__init__", "_cpu", "monitor", "estimators", "sampling"}


@pytest.mark.parametrize("file", CPP_FILES, ids=name_of)
def test_includes_point_down(file):
    folder = file.relative_to(CSRC).parts[0]
    for quote, header in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', file.read_text(), re.MULTILINE):
        if quote == "<":
            standard = re.fullmatch(r"[a-z_]+", header)  # C++ standard headers have no suffix and no folder
            allowed = standard or re.fullmatch(VENDOR_HEADERS[folder], header)
        else:
            beside = (file.parent / header).exists()
            allowed = beside or (header.split("/")[0] in INCLUDES[folder] and (CSRC / header).exists())
            allowed = allowed and ".." not in header
        assert allowed, f"{name_of(file)} may not include {header}"


@pytest.mark.parametrize("file", [f for f in CPP_FILES if f.relative_to(CSRC).parts[0] != "bind"], ids=name_of)
def test_the_core_prints_nothing_and_exits_never(file):
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", file.read_text(), flags=re.DOTALL)
    found = re.findall(r"\b(?:printf|puts|std::cout|std::cerr|exit|abort|rand|srand)\s*[(<]", code)
    assert not found, f"{name_of(file)}: {found}"


@pytest.mark.parametrize("file", PYTHON_FILES, ids=name_of)
def test_nothing_is_unpickled_or_evaluated(file):
    tree = ast.parse(file.read_text())
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert not called & {"eval", "exec", "torch.load", "torch.save", "torch.jit.load", "os.system"}


@pytest.mark.parametrize("file", PYTHON_FILES, ids=name_of)
def test_one_door_to_native_code(file):
    takes = any(isinstance(n, ast.Attribute) and n.attr == "data_ptr" for n in ast.walk(ast.parse(file.read_text())))
    assert not takes or file.relative_to(PACKAGE).as_posix() in ADDRESS_TAKERS


def test_no_page_holds_both_sides_of_a_merge():
    """What would not compile is seen at once; a page of text is not."""
    side = re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)
    assert side.search("text\n" + "<" * 7 + " HEAD\n")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert pages
    assert [name_of(page) for page in pages if side.search(page.read_text())] == []


def test_no_file_is_too_long_to_hold_in_mind():
    lengths = {name_of(f): len(f.read_text().splitlines()) for f in PYTHON_FILES + CPP_FILES}
    long = {name for name, lines in lengths.items() if lines > LONGEST}
    assert long == set(LONG_FILES), f"above {LONGEST} lines or in LONG_FILES, not both: {long ^ set(LONG_FILES)}"


# --- what users read ------------------------------------------------------------------------------------------


def definitions() -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """The source of each public function and class that the package exports at the top."""
    found = {}
    for file in PYTHON_FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in dif.__all__:
                value = getattr(dif, node.name)
                if Path(inspect.getfile(value)).resolve() == file.resolve():
                    found[node.name] = node
    return found


EXPORTED = definitions()


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [a.arg for a in every if a.arg not in {"self", "cls"}]


def section(docstring: str, title: str) -> str:
    """The indented text under ``Title:``, or nothing."""
    found = re.search(rf"^{title}:\n((?:(?:    .*)?\n?)*)", docstring, re.MULTILINE)
    return found.group(1) if found else ""


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_all_names_exist():
    assert sorted(dif.__all__) == sorted(set(dif.__all__))
    assert all(hasattr(dif, name) for name in dif.__all__)
    callables = {name for name in dif.__all__ if callable(getattr(dif, name))}
    assert callables == set(EXPORTED), "exported names whose source was not found"


@pytest.mark.parametrize("name", EXPORTED)
def test_docstrings_have_the_sections_they_need(name):
    node = EXPORTED[name]
    text = ast.get_docstring(node) or ""
    assert text, f"{name}: no docstring"
    if isinstance(node, ast.ClassDef):
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        named = parameters(methods["__init__"]) if "__init__" in methods else [f for f in fields if f[0] != "_"]
        described = section(text, "Args") + section(text, "Attributes")
    else:
        named, described = parameters(node), section(text, "Args")
        returns = node.returns is not None and ast.unparse(node.returns) != "None"
        assert not returns or "Returns" in text, f"{name}: does not say what it returns"
    missing = [p for p in named if not re.search(rf"^ +(?:.*, )?\*{{0,2}}`*{p}`*\b.*:", described, re.MULTILINE)]
    assert not missing, f"{name}: no word on {missing}"
    if isinstance(node, ast.FunctionDef):
        thrown = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise)]
        unsaid = {ast.unparse(e.func) for e in thrown if isinstance(e, ast.Call)} - words(section(text, "Raises"))
        assert not unsaid, f"{name}: raises {unsaid} and does not say so"


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=name_of)
def test_documented_examples_run(page, tmp_path, monkeypatch, capsys):
    examples = blocks(page)
    for block in examples:
        if block.skip:
            with capsys.disabled():
                print(f"\n{name_of(page)}:{block.line}: not run: {block.skip}")
    monkeypatch.chdir(tmp_path)
    run(examples, page)


# --- what ships -----------------------------------------------------------------------------------------------


def test_the_wheel_carries_types():
    # `make wheels` looks into the wheel itself; here: both files are there, and nothing keeps them out
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    assert "devinterp_fast" in settings["wheel"]["packages"]
    assert not settings["wheel"].get("exclude")
    for name in ("py.typed", "_cpu.pyi"):
        assert (PACKAGE / name).is_file()
        assert not any(Path(f"devinterp_fast/{name}").match(p) for p in settings.get("sdist", {}).get("exclude", []))


def test_the_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert dif.__version__ == project["version"]
    assert f"{project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_test_file_is_collected():
    # pytest takes test_*.py; two files of one name in folders without __init__.py hide each other
    holds_tests = re.compile(r"^(?:def test|class Test)", re.MULTILINE)
    written = {name_of(f) for f in (ROOT / "tests").rglob("*.py") if holds_tests.search(f.read_text())}
    collected = sorted((ROOT / "tests").rglob("test_*.py"))
    assert written == set(map(name_of, collected)), "a file is called test_ and has none, or the other way round"
    assert len({f.name for f in collected}) == len(collected), "two test files have the same name"


def test_every_native_test_is_built():
    listed = re.search(r"foreach\(\s*name\s+([^)]*)\)", (ROOT / "tests/native/CMakeLists.txt").read_text())
    assert listed is not None
    assert {f.stem for f in (ROOT / "tests/native").glob("*.cpp")} <= set(listed.group(1).split())
