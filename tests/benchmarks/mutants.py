"""Small faults planted one at a time in a module: which does no test notice?

    python -m tests.benchmarks.mutants MODULE… [--record [FILE…]] [--limit 60] [--seed 0] [--seconds 30] [--minutes 30]

A mutant is the module with one constant, comparison, operator, keyword, statement or pair of arguments changed. `--record`
runs the whole suite once, or some of its files, and notes which test executes which line; a mutant runs the tests that execute
its line (those of the whole module, where an import executes it), first those that execute little but its module, until one
fails; `--again` takes those that survived the last time. Each runs in a fork of a process that
has imported all libraries, on a copy of the tree, so that tests that start processes meet the mutant too. What no test notices
is printed with its line; equivalent.yaml lists what can't be noticed, by the reason.

mutmut and cosmic-ray are not used: the first leaves out decorated functions and all that stands in classes, and wraps the
rest, which changes the hashes of code that our caches are keyed by; the second starts a Python for each mutant, which takes
longer to import torch than most tests take to fail.
"""

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
KNOWN = Path(tempfile.gettempdir()) / "hf_sft-mutants"
"""Where it is noted which test executes which line, and how long it takes."""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
WORDS = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)
"""What is said, or imported: mutants inside change no number."""
BESIDE = ("strict", "desc", "disable", "leave", "style")
"""Keywords that check, or show progress."""
EQUIVALENT = Path(__file__).with_name("equivalent.yaml")
"""Mutants that no test can notice, by the reason."""


@dataclass(frozen=True)
class Mutant:
    """A module's source with one change."""

    module: str
    line: int
    code: str
    """That line."""
    what: str
    source: str
    by_import: bool
    """Whether an import executes that line."""

    @property
    def name(self) -> str:
        return f"{self.module}: {self.what}  in  {self.code}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All mutants of a file."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), ["", *map(str.strip, text.splitlines())]
    module = path.relative_to(ROOT / "hf_sft").as_posix()
    skipped = {id(inner) for node in ast.walk(tree) for outer in _no_numbers(node) for inner in ast.walk(outer)}
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.Lambda)]
    bodies = [each.body if isinstance(each.body, list) else [each.body] for each in functions]
    called = {line for body in bodies for line in range(body[0].lineno, (body[-1].end_lineno or 0) + 1)}
    for node in [each for each in ast.walk(tree) if id(each) not in skipped]:
        for field, value, what, place in _changes(node):
            before, old = ast.unparse(node), getattr(node, field)
            setattr(node, field, value)
            what = what or f"{_short(before)}  →  {_short(ast.unparse(node))}"
            line = getattr(place, "lineno", 0)
            whole = ast.unparse(ast.fix_missing_locations(tree))
            yield Mutant(module, line, lines[line], what, whole, line not in called)
            setattr(node, field, old)


def _no_numbers(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of a node in which nothing is changed."""
    if isinstance(node, WORDS):
        yield node
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield node  # a docstring
    if isinstance(node, ast.keyword) and node.arg in BESIDE:
        yield node
    for name in ("annotation", "returns"):
        if (found := getattr(node, name, None)) is not None:
            yield found
    yield from getattr(node, "decorator_list", ())


def _changes(node: ast.AST) -> Iterator[tuple[str, Any, str, ast.AST]]:
    """What is changed about a node: an attribute, its new value, words for it where the code does not say it, and where."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "value", not node.value, "", node
        elif isinstance(node.value, int):
            yield "value", node.value + 1, "", node
        elif isinstance(node.value, float):
            yield "value", node.value * 2 or 1.0, "", node
    elif isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            yield "ops", [*node.ops[:place], COMPARISONS[type(operator)](), *node.ops[place + 1 :]], "", node
    elif isinstance(node, ast.BoolOp):
        yield "op", ast.Or() if isinstance(node.op, ast.And) else ast.And(), "", node
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "op", OPERATORS[type(node.op)](), "", node
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "op", ast.UAdd(), "", node
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "operand", ast.UnaryOp(ast.Not(), node.operand), "", node
    elif isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield "test", ast.UnaryOp(ast.Not(), node.test), f"if {_short(ast.unparse(node.test))}: turned round", node.test
    elif isinstance(node, ast.Call):
        called = _short(ast.unparse(node.func))
        for keyword in node.keywords:
            if keyword.arg not in (None, *BESIDE):
                without = [each for each in node.keywords if each is not keyword]
                yield "keywords", without, f"{called}: without {_short(ast.unparse(keyword))}", keyword.value
        if len(node.args) > 1 and called not in ("max", "min") and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
            first, second, *rest = node.args
            if ast.dump(first) != ast.dump(second):
                words = f"{called}: {_short(ast.unparse(first))} and {_short(ast.unparse(second))} exchanged"
                yield "args", [second, first, *rest], words, node
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        for place, statement in enumerate(block if isinstance(block, list) else ()):
            if _can_be_dropped(statement):
                left = [*block[:place], ast.copy_location(ast.Pass(), statement), *block[place + 1 :]]
                yield name, left, f"without: {_short(ast.unparse(statement))}", statement


def _can_be_dropped(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    return isinstance(statement, ast.AugAssign | ast.Raise | ast.Continue | ast.Break)


def _short(code: str) -> str:
    code = " ".join(code.split())
    return code if len(code) <= 120 else f"{code[:117]}…"


# Which tests execute a line.


def record(files: list[str]) -> None:
    """Run the suite, or some of its files, with this file as a plugin in each of its processes, and write down what each test
    executes, beside what is known of others."""
    KNOWN.mkdir(exist_ok=True)
    for left in KNOWN.glob("worker-*.json"):  # of a recording that failed
        left.unlink()
    noted = KNOWN / "tests.json"
    before = json.loads(noted.read_text()) if files and noted.exists() else {"contexts": [], "tests": {}, "seconds": {}}
    told = {**os.environ, "HF_SFT_MUTANTS": str(KNOWN)}
    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "tests.benchmarks.mutants", *files]
    done = subprocess.run(command, cwd=ROOT, env=told, check=False)
    if done.returncode:
        sys.exit("the suite has to pass before mutants can be told from what fails anyway")
    listed = subprocess.run([*command[:3], "--collect-only", *files], cwd=ROOT, capture_output=True, text=True, check=True)
    again = {*listed.stdout.splitlines()}  # an id that holds an address, or a folder, is another each time
    numbers: dict[str, int] = {name: number for number, name in enumerate(before["contexts"])}
    tests: dict[str, dict[str, list[int]]] = before["tests"]
    seconds: dict[str, float] = before["seconds"]
    for path in KNOWN.glob("worker-*.json"):
        found = json.loads(path.read_text())
        seconds |= {name: each for name, each in found["seconds"].items() if name in again}
        for module, lines in found["lines"].items():
            for line, contexts in lines.items():
                known = [numbers.setdefault(each, len(numbers)) for each in contexts]
                tests.setdefault(module, {}).setdefault(line, []).extend(known)
        path.unlink()
    noted.write_text(json.dumps({"contexts": [*numbers], "tests": tests, "seconds": seconds}))


if "HF_SFT_MUTANTS" in os.environ and "PYTEST_XDIST_WORKER" in os.environ:
    import coverage
    import pytest

    SECONDS: dict[str, float] = {}
    COVERAGE = coverage.Coverage(data_file=None, source=[str(ROOT / "hf_sft")])
    COVERAGE.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(item: Any) -> Any:
        COVERAGE.switch_context(f"{item.nodeid}|setup")
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item: Any) -> Any:
        COVERAGE.switch_context(item.nodeid)
        started = time.perf_counter()  # some tests have a `monotonic` of their own
        try:
            return (yield)
        finally:
            SECONDS[item.nodeid] = time.perf_counter() - started

    def pytest_sessionfinish() -> None:
        COVERAGE.stop()
        data = COVERAGE.get_data()
        lines = {
            Path(file).relative_to(ROOT / "hf_sft").as_posix(): data.contexts_by_lineno(file) for file in data.measured_files()
        }
        path = Path(os.environ["HF_SFT_MUTANTS"]) / f"worker-{os.environ['PYTEST_XDIST_WORKER']}.json"
        path.write_text(json.dumps({"lines": lines, "seconds": SECONDS}))


def tests_of(mutant: Mutant, known: dict[str, Any]) -> list[str]:
    """Those that execute its line: one of each function, then a second one, those first that execute little but its module.

    What sets a test up may be shared by all of its file. A line that an import executes is tested by all that execute others
    of its module, or, where there are none, of those that it imports.
    """
    lines, seconds = known["tests"].get(mutant.module, {}), known["seconds"]
    contexts = {known["contexts"][number] for number in lines.get(str(mutant.line), ())}
    inside = Counter(known["contexts"][number] for found in lines.values() for number in found)
    if mutant.by_import or contexts == {""}:
        contexts = {*inside}
        if not contexts - {""}:
            others = [known["tests"].get(module, {}) for module in _imported(mutant.source)]
            contexts = {known["contexts"][number] for each in others for found in each.values() for number in found}
    shared = {each.partition("::")[0] for each in contexts if each.endswith("|setup")}
    chosen = {each for each in contexts if each in seconds}
    chosen |= {each for each in seconds if each.partition("::")[0] in shared}
    rounds: Counter[str] = Counter()
    ranked = []
    for test in sorted(chosen, key=lambda test: (-inside[test] / max(1, known["reach"][test]), seconds[test])):
        function = test.partition("[")[0]
        ranked.append((rounds[function], len(ranked), test))
        rounds[function] += 1
    return [test for *_, test in sorted(ranked)]


def _imported(source: str) -> list[str]:
    """The modules of this package from which a module takes something."""
    taken = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    names = [name.removeprefix("hf_sft.").replace(".", "/") for name in taken if name.startswith("hf_sft.")]
    return [f"{name}{end}" for name in names for end in (".py", "/__init__.py")]


# Running them.


def preload() -> None:
    """Import all that the package and its tests import, but neither of them."""
    listing = "import sys, importlib, pathlib\n"
    listing += "for p in sorted(pathlib.Path('tests').rglob('test_*.py')):\n"
    listing += "    importlib.import_module('.'.join(p.with_suffix('').parts))\n"
    listing += "import hf_sft.cli, hf_sft.runs.train, hf_sft.reports.plots\nprint('\\n'.join(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", listing], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    for name in done.stdout.split():
        if name.partition(".")[0] not in ("hf_sft", "tests", "__main__", "sitecustomize", "conftest"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    for name in [each for each in sys.modules if each.partition(".")[0] in ("hf_sft", "tests")]:
        del sys.modules[name]


def run_tests(copy: Path, home: Path, tests: list[str], seconds: float = 60) -> int:
    """pytest's exit status, in a fork of this process that imports the package from the copy; -1 where it takes much longer
    than it should, since a mutant may never end."""
    home.mkdir()
    child = os.fork()
    if child:
        limit = time.monotonic() + 30 + 5 * seconds
        while time.monotonic() < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return -1
    try:
        os.setsid()
        os.chdir(copy)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        _move_caches(home)
        import pytest

        options = ["-x", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={home / 'tests'}"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that are imported already
        os._exit(int(pytest.main([*options, *tests])))
    except BaseException:
        os._exit(99)


def _move_caches(home: Path) -> None:
    """A mutant's caches are its own: the libraries read where theirs are when they were imported."""
    import datasets.config
    import huggingface_hub.constants

    for module in (huggingface_hub.constants, datasets.config):
        for name in [each for each in vars(module) if (each.startswith("HF_") and "CACHE" in each) or each == "HF_HOME"]:
            value = getattr(module, name)
            if isinstance(value, str | Path) and str(value).startswith("/"):
                setattr(module, name, type(value)(str(home / name)))


def lane(
    mutants: dict[int, Mutant], known: dict[str, Any], first: list[str], most: float, until: float, results: Path
) -> None:
    """Run mutants one after the other, on a copy of the tree of its own; a line of JSON for each."""
    with tempfile.TemporaryDirectory() as folder, results.open("a") as file:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".*_cache"))
        if run_tests(copy, Path(folder) / "clean", [each for each in known["seconds"] if "test_splits.py" in each]):
            sys.exit("tests fail without any mutant: look at them first")
        for place, mutant in mutants.items():
            if time.monotonic() > until:
                return
            asked, tests, spent = tests_of(mutant, known), [*first], 0.0
            for test in [each for each in asked if known["seconds"][each] <= most] or asked[:1]:
                if spent <= most:
                    tests.append(test)
                    spent += known["seconds"][test]
            path = copy / "hf_sft" / mutant.module
            whole = path.read_text(encoding="utf-8")
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
                compiled.unlink()
            path.write_text(mutant.source, encoding="utf-8")
            started = time.monotonic()
            status = run_tests(copy, Path(folder) / f"home-{place}", tests, spent) if tests else 0
            path.write_text(whole, encoding="utf-8")
            shutil.rmtree(Path(folder) / f"home-{place}", ignore_errors=True)
            told = {"mutant": place, "name": mutant.name, "status": status, "tests": len(tests), "of": len(asked)}
            file.write(json.dumps({**told, "seconds": time.monotonic() - started}) + "\n")
            file.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="like splitting, tasks/chat")
    parser.add_argument("--record", nargs="*", metavar="FILE", help="run all tests, or some, and note what each executes")
    parser.add_argument("--limit", type=int, default=60, help="mutants of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30, help="of tests for a mutant: of more, the slowest are left out")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="only those that survived the last time")
    parser.add_argument(
        "--first", nargs="*", default=[], metavar="TEST", help="tests that are run before those that are chosen"
    )
    parser.add_argument("--list", action="store_true", help="only count them")
    asked = parser.parse_args()
    if asked.record is not None:
        record(asked.record)
    every = {name: [*mutants_of(ROOT / "hf_sft" / f"{name}.py")] for name in asked.modules}
    if asked.list:
        print("\n".join(f"{name:40} {len(found):5}" for name, found in every.items()))
        return 0
    known = json.loads((KNOWN / "tests.json").read_text())
    lines = Counter(number for found in known["tests"].values() for each in found.values() for number in each)
    known["reach"] = Counter({known["contexts"][number]: count for number, count in lines.items()})
    draw = random.Random(asked.seed)
    if asked.again:
        told = [json.loads(line) for path in KNOWN.glob("results-*.jsonl") for line in path.read_text().splitlines()]
        survivors = {each["name"] for each in told if not each["status"]}
        chosen = [each for found in every.values() for each in found if each.name in survivors]
    else:
        chosen = [each for found in every.values() for each in draw.sample(found, min(asked.limit, len(found)))]
    known_equal = {name for names in yaml.safe_load(EQUIVALENT.read_text()).values() for name in names}
    equal = Counter(each.module for each in chosen if each.name in known_equal)
    chosen = [each for each in chosen if each.name not in known_equal]
    draw.shuffle(chosen)
    until = time.monotonic() + 60 * asked.minutes
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    preload()
    files, children = [], []
    for number in range(asked.lanes):
        files.append(KNOWN / f"results-{number}.jsonl")
        files[-1].unlink(missing_ok=True)
        if not (child := os.fork()):
            lane(dict([*enumerate(chosen)][number :: asked.lanes]), known, asked.first, asked.seconds, until, files[-1])
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        return 1
    return tell(asked.modules, chosen, equal, [json.loads(line) for path in files for line in path.read_text().splitlines()])


def tell(modules: list[str], chosen: list[Mutant], equal: Counter[str], results: list[dict[str, Any]]) -> int:
    """Print the table and the survivors; gives 1 where there are some."""
    print(f"{'module':34} {'mutants':>8} {'killed':>7} {'equivalent':>11} {'untested':>9} {'survived':>9}")
    left = []
    for module in modules:
        counts: Counter[str] = Counter()
        for mutant, found in ((chosen[each["mutant"]], each) for each in results):
            if mutant.module != f"{module}.py":
                continue
            kind = "killed" if found["status"] else "survived" if found["tests"] else "untested"
            counts[kind] += 1
            if kind != "killed":
                left.append((mutant, found))
        same = equal[f"{module}.py"]
        row = [counts.total() + same, counts["killed"], same, counts["untested"], counts["survived"]]
        print(f"{module:34} {row[0]:8} {row[1]:7} {row[2]:11} {row[3]:9} {row[4]:9}")
    for mutant, found in sorted(left, key=lambda pair: (pair[0].module, pair[0].line)):
        met = f"{found['tests']} of {found['of']} tests"
        print(f"hf_sft/{mutant.module}:{mutant.line}  {mutant.what}  in  {mutant.code}  ({met})")
    print(f"{len(results)} of {len(chosen)} mutants ran, {sum(each['seconds'] for each in results):,.0f} s")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
