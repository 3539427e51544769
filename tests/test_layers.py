"""Data flows one way: a part of the package imports from the parts before it, as CONTRIBUTING.md lists them."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sleepfm_fast"

# A part and the modules at the top that are its doors; parts in one row may use each other.
ROWS = (
    ("errors", "plurals", "system"),
    ("cli", "__init__"),
    ("storage",),
    ("execution",),
    ("formats", "edf", "wfdb", "recordings"),
    ("montage", "channels"),
    ("scoring", "annotations", "epochs"),
    ("filtering", "filters"),
    ("ops", "reference", "ranks", "distributed"),
    ("store", "clips", "batches"),
    ("cohorts",),
    ("doctor",),
    ("runs", "rundir"),
    ("model", "encoder", "inference"),
    ("evaluation", "embeddings", "results"),
    ("training", "pretrained"),
    ("baselines",),
    ("simulator",),
    ("reproduction",),
    ("reporting",),
)
# The settings of a training are the command's options, none of them open.
EXCEPTION = ("sleepfm_fast.training.settings", "sleepfm_fast.train")
ROW_OF = {part: number for number, row in enumerate(ROWS) for part in row}


def part_of(module):
    """Of ``sleepfm_fast.store.feed``: ``store``; the package itself is ``__init__``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def name_of(path):
    names = ("sleepfm_fast", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def commands():
    for node in ast.parse((PACKAGE / "__main__.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "COMMANDS":
            return set(ast.literal_eval(node.value))
    raise AssertionError("COMMANDS stands in __main__.py")


def imported(tree):
    """The modules of the package that a source imports, at its top or inside a function; not those for types alone."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            joined = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in joined]
        else:
            continue
        yield from (name for name in names if name == "sleepfm_fast" or name.startswith("sleepfm_fast."))


def upward(module, source):
    """The imports of a module that go against the flow."""
    row = ROW_OF[part_of(module)]
    for name in imported(ast.parse(source)):
        part = part_of(name)
        if part != "_C" and (module, name) != EXCEPTION and ROW_OF.get(part, len(ROWS)) > row:
            yield f"{module} imports {name}"


def test_every_module_has_its_place():
    parts = {part_of(module) for module in MODULES}
    assert parts == set(ROW_OF) | commands() | {"__main__", "demo"}


@pytest.mark.parametrize("module", sorted(module for module in MODULES if part_of(module) in ROW_OF))
def test_a_part_imports_from_those_before_it(module):
    assert list(upward(module, MODULES[module].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "from sleepfm_fast.training import loop",
        "from sleepfm_fast import train",
        "import sleepfm_fast.reporting.page",
        "def late():\n    from sleepfm_fast.embeddings import Embeddings",
    ],
)
def test_an_import_against_the_flow_is_seen(source):
    assert len(list(upward("sleepfm_fast.store.feed", source))) == 1


def test_types_of_a_command_may_be_named():
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sleepfm_fast.train import Config"
    assert list(upward("sleepfm_fast.training.settings", source)) == []
