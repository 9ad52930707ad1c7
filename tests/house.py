"""The rules of the house, as functions of a package's folder.

Each rule returns one line for each violation. `test_architecture` runs them, and breaks them.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# What the files of a room may import of ours; a room always sees itself. The longest matching name
# of an importer decides.
ALL = {""}
MAY_IMPORT: dict[str, set[str]] = {
    "atomic": set(),
    "config": set(),
    "registry": {"config"},
    "distributed": set(),
    "signals": {"atomic"},
    "nn": {"distributed"},
    "optim": {"nn", "backbones.contract"},
    "backbones": {"nn", "registry", "config"},
    "backbones.operators": {"nn", "backbones.operators"},
    "data": {"nn", "atomic", "registry", "config", "signals"},
    "interop": {"nn", "backbones", "atomic"},
    "text_encoder": {"backbones", "data.tokenizer", "atomic"},
    "encoder": {
        "backbones",
        "interop.read.load",
        "interop.read.own_weights",
        "interop.read.weights_file",
        "atomic",
        "data.decode.inputs",
        "data.views.preparation",
        "data.views.preprocess",
    },
    "objectives": {
        "nn",
        "distributed",
        "optim",
        "registry",
        "config",
        "data.contract",
        "data.tokenizer",
        "data.views.plan",
        "backbones.contract",
        "backbones.decoder",
        "backbones.joint",
    },
    "recipes": {
        "objectives",
        "optim",
        "nn.schedules",
        "config",
        "registry",
        "distributed.ranks",
        "data.views",
        "data.loading.workers",
    },
    "evals": {
        "encoder",
        "text_encoder",
        "backbones",
        "data",
        "nn",
        "objectives.registry",
        "atomic",
        "config",
        "registry",
    },
    "reporting": {"evals", "data", "atomic", "registry", "config"},
    "exporting": {
        "encoder",
        "backbones",
        "interop.timm_zoo",
        "interop.vit_shape",
        "data.views.preparation",
        "data.views.preprocess",
        "atomic",
    },
    "train": {
        "atomic",
        "backbones",
        "config",
        "data",
        "distributed",
        "encoder",
        "evals",
        "interop",
        "nn",
        "objectives",
        "optim",
        "recipes",
        "registry",
        "signals",
        "text_encoder",
    },
    "api": ALL,
    "cli": ALL,
    "__init__": ALL,
    "__main__": ALL,
}

# What a part of a room may not see of its own room.
MAY_NOT_IMPORT: dict[str, set[str]] = {
    "data.contract": {"data.decode", "data.sources", "data.views", "data.loading", "data.tools"},
    "data.decode": {"data.sources", "data.loading", "data.tools"},
    "data.sources": {"data.views", "data.loading", "data.tools"},
    "data.sources.formats": {"data.sources.datasets"},
    "data.views": {"data.sources", "data.loading", "data.tools"},
    "data.loading": {"data.sources", "data.tools"},
    "evals.figures": {
        f"evals.{name}"
        for name in ("classification", "contract", "features", "patches", "registry", "retrieval")
    },
    "evals.classification": {"evals.registry", "evals.patches", "evals.retrieval"},
    "evals.retrieval": {"evals.registry", "evals.patches"},
    "evals.patches": {"evals.registry", "evals.classification", "evals.retrieval"},
}
# Files that hold a part of their room that everybody in it may see.
SHARED_OBJECTIVES = {"contract", "registry", "build", "masked", "__init__"}

ROOT_MODULES, ROOM_MODULES = 9, 15
ONE_FILE_A_THING = {"objectives", "recipes", "data/sources/datasets"}
FILE_LINES, FUNCTION_LINES, LOOP_LINES = 320, 60, 150
LONG_FUNCTIONS = {"train/loop.py:train": 90, "evals/evaluate.py:evaluate": 90}

# A word that only some files may hold, and why.
ONLY_IN = {
    r"\bdifflib\b": {"config.py"},
    r"\bos\.replace\(|\btempfile\b": {"atomic.py"},
    r"\bFigureCanvasAgg\b|\.savefig\(": {"evals/figures/grid.py"},
    r"\btorch\.distributed\b": {"distributed/", "train/parallel.py"},
}
UNTRUSTED = ("eval(", "exec(", "pickle.load", "Unpickler(", "torch.hub", "weights_only=False")
LABELS = ("Paper", "Code", "Departures", "Shapes")


def modules(package: Path) -> dict[str, Path]:
    """Returns the files of a package by their dotted name without the package's own."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports_of(path: Path, at_import: bool = False) -> set[str]:
    """Returns the modules of ours that a file imports, and their members, without "vitrail.".

    Args:
        path: the file.
        at_import: leave out imports inside functions and under `if TYPE_CHECKING`.
    """
    return _imports(path.read_text(), at_import)


@cache  # every rule reads every file, and a broken rule changes one
def _imports(text: str, at_import: bool) -> set[str]:
    found = set()
    for node in _statements(ast.parse(text), at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name.removeprefix("vitrail.") for name in found if name.startswith("vitrail.")}


def _statements(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if at_import and deferred:
            continue
        yield node
        yield from _statements(node, at_import)


def _below(name: str, rooms: set[str]) -> bool:
    return any(not room or name == room or name.startswith(f"{room}.") for room in rooms)


def _rule(name: str, rules: dict[str, set[str]]) -> str | None:
    fitting = [rule for rule in rules if name == rule or name.startswith(f"{rule}.")]
    return max(fitting, key=len, default=None)


def wrong_imports(package: Path) -> list[str]:
    """A room imports only rooms below it, whether at import or inside a function."""
    found, files = [], modules(package)
    for name, path in files.items():
        rule = _rule(name, MAY_IMPORT)
        if rule is None:
            found.append(f"{name} is in no room that MAY_IMPORT lists")
            continue
        room = rule if rule == "backbones.operators" else name.partition(".")[0]
        forbidden = MAY_NOT_IMPORT.get(_rule(name, MAY_NOT_IMPORT) or "", set())
        imported = imports_of(path)
        for module in sorted(imported):
            if any(other.startswith(f"{module}.") for other in imported & files.keys()):
                continue  # `from vitrail.room import module`: the module counts
            if not _below(module, MAY_IMPORT[rule] | {room}) or _below(module, forbidden):
                found.append(f"{name} imports {module}")
    return found


def methods_that_import_methods(package: Path) -> list[str]:
    """An objective imports no other objective; only the registry refers to them."""
    methods = {p.stem for p in (package / "objectives").glob("*.py")} - SHARED_OBJECTIVES
    return [
        f"objectives.{name} imports objectives.{other}"
        for name in sorted(methods)
        for other in sorted(methods - {name})
        if _below_any(imports_of(package / "objectives" / f"{name}.py"), f"objectives.{other}")
    ]


def _below_any(names: set[str], room: str) -> bool:
    return any(_below(name, {room}) for name in names)


def protocols_seen_outside(package: Path) -> list[str]:
    """Nothing outside `evals` but the command line and the report sees the table of protocols."""
    seers = {"evals", "reporting", "cli", "api"}
    return [
        f"{name} imports evals.registry"
        for name, path in modules(package).items()
        if name.partition(".")[0] not in seers and _below_any(imports_of(path), "evals.registry")
    ]


def import_cycles(package: Path) -> list[str]:
    """No file imports itself through others, when it is imported."""
    files = modules(package)
    graph = {
        name: {m for m in imports_of(path, at_import=True) if m in files and m != name}
        for name, path in files.items()
    }
    found, done = [], set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
            return
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, [*trail, name])
        done.add(name)

    for name in graph:
        visit(name, [])
    return found


def crowded_rooms(package: Path) -> list[str]:
    """No room holds more modules than a reader takes in, but rooms of one file a thing."""
    found = []
    for folder in [package, *(p for p in package.rglob("*") if p.is_dir())]:
        count = sum(p.stem not in ("__init__", "__main__") for p in folder.glob("*.py"))
        limit = ROOT_MODULES if folder == package else ROOM_MODULES
        if count > limit and str(folder.relative_to(package)) not in ONE_FILE_A_THING:
            found.append(f"{folder.relative_to(package)} holds {count} modules, more than {limit}")
    return found


def long_code(package: Path) -> list[str]:
    """No file and no function is longer than a reader keeps in mind.

    The rows of a registry are not counted: there is one for each thing, and none is read with all.
    """
    found = []
    for path in modules(package).values():
        where, text = path.relative_to(package).as_posix(), path.read_text()
        lines = len(text.splitlines())
        if path.name == "registry.py":
            lines -= _lines_of_rows(text)
        limit = LOOP_LINES if where == "train/loop.py" else FILE_LINES
        if lines > limit:
            found.append(f"{where} has {lines} lines, more than {limit}")
        for function, length in _functions(text):
            limit = LONG_FUNCTIONS.get(f"{where}:{function}", FUNCTION_LINES)
            if length > limit:
                found.append(f"{where}: {function} has {length} lines, more than {limit}")
    return found


def _lines_of_rows(text: str) -> int:
    """Returns the lines of the dicts that a file assigns to names, or builds a `Registry` of."""
    found = 0
    for node in ast.parse(text).body:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        parts = value.args if isinstance(value, ast.Call) else [value]
        dicts = [part for part in parts if isinstance(part, ast.Dict)]
        found += sum((rows.end_lineno or rows.lineno) - rows.lineno + 1 for rows in dicts)
    return found


@cache  # see `_imports`
def _functions(text: str) -> list[tuple[str, int]]:
    """Returns the names and the lines of a file's functions."""
    return [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def registries_that_are_no_literals(package: Path) -> list[str]:
    """Every registry is a literal dict in a file called registry.py, where `REGISTRIES` says."""
    tree = ast.parse((package / "registry.py").read_text())
    assigned = {t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets}
    found = []
    for kind, reference in ast.literal_eval(assigned["REGISTRIES"]).items():
        module, _, name = reference.removeprefix("vitrail.").partition(":")
        path = package / f"{module.replace('.', '/')}.py"
        calls = [
            node.value
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            and name in [ast.unparse(target) for target in node.targets]
        ]
        literal = (
            len(calls) == 1
            and isinstance(calls[0], ast.Call)
            and ast.unparse(calls[0].func) == "Registry"
            and ast.unparse(calls[0].args[0]) == repr(kind)
            and _is_literal_dict(calls[0].args[2], path)
        )
        if path.name != "registry.py" or not literal:
            found.append(f"{reference} is no Registry({kind!r}, ..., {{...}}) in a registry.py")
    return found


def _is_literal_dict(rows: ast.expr, path: Path) -> bool:
    """Returns whether rows are a dict of written names, here or assigned to a name of the file."""
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(rows, ast.Name) and rows.id in [getattr(t, "id", None) for t in targets]:
            rows = node.value
    return isinstance(rows, ast.Dict) and all(isinstance(key, ast.Constant) for key in rows.keys)


def words_out_of_place(package: Path) -> list[str]:
    """Writing files, drawing and processes have one place each, and are done only there."""
    found = []
    for path in modules(package).values():
        where, code = path.relative_to(package).as_posix(), _code(path.read_text())
        for word, places in ONLY_IN.items():
            if re.search(word, code) and not where.startswith(tuple(places)):
                found.append(f"{where} holds {word}, which belongs to {', '.join(sorted(places))}")
    return found


def untrusted_code(package: Path) -> list[str]:
    """Nothing untrusted is executed: no eval, exec, pickle or torch.hub."""
    found = []
    for path in modules(package).values():
        lines = _code(path.read_text()).splitlines()
        for word in UNTRUSTED:
            # `module.eval()` and `retrieval(...)` end alike: only the built-ins stand alone.
            alone = r"(?<![\w.])" if word in ("eval(", "exec(") else ""
            pattern = re.compile(alone + re.escape(word))
            found += [
                f"{path.relative_to(package)}: {line.strip()}"
                for line in lines
                if pattern.search(line)
            ]
    return found


def objectives_without_source(package: Path) -> list[str]:
    """The docstring of every method says its paper, its code, its departures and its shapes."""
    found = []
    for path in sorted((package / "objectives").glob("*.py")):
        if path.stem in SHARED_OBJECTIVES:
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        found += [
            f"objectives/{path.name}: its docstring lacks a line {label!r}"
            for label in LABELS
            if not re.search(
                rf"^{label}\w*:|^{label[:-1]} legend:|^{label[:-1]}\w*:", docstring, re.M
            )
        ]
    return found


@cache  # see `_imports`
def _code(text: str) -> str:
    """Returns a file's code without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            body[0] = ast.Pass() if isinstance(body[0].value, ast.Constant) else body[0]
    return ast.unparse(tree)
