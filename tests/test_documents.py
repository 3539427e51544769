"""What README and docs say can be typed: every command parses, every option and file exists, the examples run."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
import tyro
from torch.nn import functional

from sleepfm_fast import distributed, ops
from sleepfm_fast.__main__ import COMMANDS
from sleepfm_fast.ops import contrastive_loss
from sleepfm_fast.ops.mbconv import WEIGHTS
from sleepfm_fast.ranks import pair_ranks

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Options of other programs, and what stands for an option.
FOREIGN = {
    "--config-settings",
    "--help",
    "--nproc-per-node",
    "--array",
    "--install",
    "--no-build-isolation",
    "--sdist",
    "--cpus-per-task",
    "--requeue",
    "--signal",
}


def blocks(text, *languages):
    return [m[2] for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if m[1] in languages]


def shell_blocks(text):
    """Fenced and indented ones."""
    return blocks(text, "sh", "bash", "") + re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)


def commands_of(page):
    """(command, arguments) of every call of one of our commands in a page's shell blocks."""
    for block in shell_blocks(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"-m sleepfm_fast\.\w+", line) or '"$' in line:
                continue
            words = shlex.split(line, comments=True)
            while "-m" in words:
                words = words[words.index("-m") + 1 :]
                own = words[1:]
                for stop in ("&&", "|", ">", "&", "-m"):
                    own = own[: own.index(stop)] if stop in own else own
                if words[0].startswith("sleepfm_fast."):
                    yield words[0].removeprefix("sleepfm_fast."), own


CALLS = [(page.name, command, own) for page in PAGES for command, own in commands_of(page)]


def test_the_pages_have_been_read():
    assert len(CALLS) > 50
    assert {command for _, command, _ in CALLS} >= set(COMMANDS) - {"import_checkpoint", "convert"}


def test_a_command_of_the_pages_stands_on_one_line():
    lines = [
        f"{page.name}: {line}"
        for page in PAGES
        for block in shell_blocks(page.read_text())
        for line in block.splitlines()
        if re.search(r"^\s*sleepfm_fast\.[a-z_]+(?: |$)|-m$", line)
    ]
    assert lines == []


@pytest.mark.parametrize(
    ("page", "command", "arguments"), CALLS, ids=[f"{page}-{n}-{command}" for n, (page, command, _) in enumerate(CALLS)]
)
def test_a_command_of_the_pages_parses(page, command, arguments, capsys):
    module = importlib.import_module(f"sleepfm_fast.{command}")
    if arguments == ["--help"]:
        return
    try:
        tyro.cli(module.Config, args=arguments, use_underscores=False)
    except SystemExit:
        pytest.fail(f"{page}: python -m sleepfm_fast.{command} {shlex.join(arguments)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("file", [*(f"{command}.py" for command in COMMANDS), "simulator/sleeper.py"])
def test_no_line_of_a_docstring_breaks_the_help(file):
    """Tyro joins the lines of a paragraph, but for those that do not begin with a letter."""
    classes = [node for node in ast.parse((ROOT / "sleepfm_fast" / file).read_text()).body if hasattr(node, "bases")]
    shown = [
        statement.value.value
        for options in classes
        if options.name in ("Config", "Couplings")
        for statement in options.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    ]
    assert shown
    lines = [line.strip() for text in shown for line in ["", *text.splitlines(), ""]]
    broken = [line for before, line in itertools.pairwise(lines) if before and line and not line[0].isalpha()]
    assert broken == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_breaks_where_the_terminal_ends(command, capsys, monkeypatch):
    """Tyro alone takes every line of an option's docstring but the first for a line of its own."""
    monkeypatch.setenv("COLUMNS", "2000")
    module = importlib.import_module(f"sleepfm_fast.{command}")
    assert module.cli(["--help"]) == 0
    shown = [line.strip(" \u2502") for line in capsys.readouterr().out.splitlines()]
    (options,) = [n for n in ast.parse(Path(module.__file__).read_text()).body if getattr(n, "name", "") == "Config"]
    texts = [s.value.value for s in options.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
    missing = [text for text in texts[1:] if not any(" ".join(text.split()) in line for line in shown)]
    assert missing == []


def options_of(config, prefix=""):
    for field in dataclasses.fields(config):
        name = prefix + field.name.replace("_", "-")
        yield f"--{name}"
        if dataclasses.is_dataclass(default := field.default_factory):
            yield from options_of(default, f"{name}.")


def test_every_option_that_a_page_names_exists():
    known = set(FOREIGN)
    for command in COMMANDS:
        known |= set(options_of(importlib.import_module(f"sleepfm_fast.{command}").Config))
    files = [path for folder in ("bench", "tests") for path in (ROOT / folder).glob("*.*") if path.is_file()]
    sources = "".join(path.read_text() for path in files)
    missing = [
        f"{page.name}: {option}"
        for page in PAGES
        for code in re.findall(r"`([^`\n]+)`", page.read_text())
        for option in re.findall(r"(?<![\w-])--[a-z](?:[a-z0-9.-]*[a-z0-9])?(?!\w)", code)
        if option not in known and f'"{option}"' not in sources
    ]
    assert missing == []


def test_every_file_that_a_page_names_exists():
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    missing = [
        f"{page.name}: {name}"
        for page in PAGES
        for name in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", page.read_text())
        if "NAME" not in name and not (ROOT / name).exists()
    ]
    assert missing == []


def prose_of(text):
    """A page's text without its blocks and spans of code, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors_of(text):
    """The fragments by which GitHub links to a page's headings."""
    anchors = set()
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        slug = start = re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")
        repeats = 0
        while slug in anchors:
            repeats += 1
            slug = f"{start}-{repeats}"
        anchors.add(slug)
    return anchors


def broken_links(page):
    """What of a page's links into this repository leads nowhere, as sentences."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{page.name}: {target}: no such file"
        elif fragment and fragment not in anchors_of(file.read_text()):
            yield f"{page.name}: {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    assert list(broken_links(page)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "other.md").write_text(
        "# Other\n\n## A `heading`, twice\n\n## A `heading`, twice\n\n```sh\n# no heading\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[a](other.md) [b](other.md#a-heading-twice-1) [c](#page) [d](https://example.org/x) `x[0](1)`\n"
        "[e](none.md) [f](other.md#a-heading-twice-2)\n[g](#no-heading) ![h](none.svg)\n"
    )
    assert list(broken_links(page)) == [
        "page.md: none.md: no such file",
        "page.md: other.md#a-heading-twice-2: no such heading",
        "page.md: #no-heading: no such heading",
        "page.md: none.svg: no such file",
    ]


def test_every_page_that_a_source_names_exists():
    folders = {"bench": "*.*", "csrc": "**/*.*", "sleepfm_fast": "**/*.py", "tests": "**/*.*"}
    files = [path for folder, pattern in folders.items() for path in (ROOT / folder).glob(pattern)]
    texts = {
        path: path.read_text() for path in files if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh", ".md", ".sh"}
    }
    named = {
        (path, name) for path, text in texts.items() for name in re.findall(r"\bdocs/[\w./-]+\.(?:md|svg|png)\b", text)
    }
    assert len(named) > 10
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in sorted(named) if not (ROOT / name).exists()] == []


def tables_of(text):
    """The tables of a page, each as its rows' numbers of cells; to GitHub a bar in a span of code is a border too."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        yield [row.count("|") - row.count("\\|") - 1 for row in block.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(page):
    assert [table for table in tables_of(page.read_text()) if len(table) < 3 or len(set(table)) > 1] == []


def test_a_bar_in_a_table_s_code_is_found():
    head = "| option | what |\n|---|---|\n"
    assert list(tables_of(f"{head}| `a | b` | both |\n")) == [[2, 2, 3]]
    assert list(tables_of(f"{head}| `a \\| b` | both |\n")) == [[2, 2, 2]]


def example(word):
    """What the README's Python block with a word in it leaves behind."""
    (block,) = [block for block in blocks((ROOT / "README.md").read_text(), "python") if word in block]
    names = {}
    exec(block, names)
    return names


def test_the_readme_s_example_of_the_filter_runs():
    clip = example("filter_resample")["clip"]
    assert clip.shape == (1, 1, 7680)
    assert abs(clip.mean()) < 1e-4
    assert abs(clip.std() - 1) < 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_two_modalities_pairwise_are_clip_s_loss(masked):
    a, b = torch.randn(2, 40, 32, dtype=torch.float64)
    logit_scale = torch.tensor(2.0, dtype=torch.float64)
    kept = torch.rand(40) < 0.7 if masked else torch.ones(40, dtype=torch.bool)
    loss, _ = contrastive_loss(torch.stack([a, b]), logit_scale, mode="pairwise", mask=kept.expand(2, 40))
    logits = logit_scale.exp() * functional.normalize(a[kept]) @ functional.normalize(b[kept]).T
    labels = torch.arange(len(logits))
    clip = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(loss, clip, rtol=1e-12, atol=0)


def test_the_readme_s_example_of_the_loss_runs():
    names = example("contrastive_loss")
    assert names["x"].grad.shape == (3, 512, 128)
    assert names["log_temperature"].grad.abs() > 0
    assert names["statistics"].ranks.shape == (3, 2, 512)


OPERATIONS = blocks((ROOT / "docs" / "operations.md").read_text(), "python")


def signatures_of(text):
    """(name, arguments) of the calls with ``->`` in a page's indented blocks."""
    for block in re.findall(r"(?:^ {4}\S.*\n(?:^ {5,}\S.*\n)*)+", text, re.MULTILINE):
        for name, arguments in re.findall(r"^ {4}([a-z_.]+)\(([^()]*)\)(?: ->|$)", block, re.MULTILINE):
            yield name, [word.strip() for word in arguments.split(",")]


def test_the_page_of_operations_has_the_arguments_of_every_operation():
    found = dict(signatures_of((ROOT / "docs" / "operations.md").read_text()))
    assert len(found) == 9
    for name, written in found.items():
        operation = {"distributed.contrastive_loss": distributed.contrastive_loss, "pair_ranks": pair_ranks}.get(
            name, getattr(ops, name, None)
        )
        parameters = inspect.signature(operation).parameters.values()
        assert [word.partition("=")[0] for word in written if word != "*"] == [p.name for p in parameters], name
        defaults = {p.name: p.default for p in parameters}
        for word in written:
            argument, is_given, value = word.partition("=")
            if is_given:
                assert eval(value, {"torch": torch}) == defaults[argument], (name, word)


def test_the_page_of_operations_names_every_public_one():
    page = (ROOT / "docs" / "operations.md").read_text()
    missing = [name for name in ops.__all__ if not re.search(rf"ops\.{name}\b", page)]
    assert missing == ["ContrastiveStatistics"]  # described where the loss is


def test_no_example_of_the_page_of_operations_goes_unread():
    assert len(OPERATIONS) == 5


@pytest.mark.parametrize(
    ("word", "shapes"),
    [
        ("contrastive_loss", {"loss": (), "top1": (3, 2)}),
        ("filter_resample", {"clips": (1, 3, 7680)}),
        ("mbconv", {"y": (8, 16, 1920), "statistics": (4, 192)}),
        ("encoder_evaluate", {"average": (4, 16)}),
        ("pair_ranks", {"ecg_to_brain": (1000,), "brain_to_ecg": (1000,)}),
    ],
)
def test_an_example_of_the_page_of_operations_gives_what_it_says(word, shapes):
    (block,) = [block for block in OPERATIONS if re.search(rf"import.*\b{word}\b", block)]
    names = {}
    exec(block, names)
    for name, shape in shapes.items():
        assert tuple(names[name].shape) == shape
        assert bool((names[name] == names[name]).all()), f"{name} holds NaN"
    if word == "filter_resample":
        assert not names["clips"][0, 2].any()
        assert abs(names["clips"][0, 0].std() - 1) < 1e-3
        assert names["clips"][0, 1].abs().max() < 1
    if word == "mbconv":
        gradients = [leaf.grad for leaf in names["weights"]]
        assert [bool(g.any()) for g in gradients] == [name not in ("b1", "bd") for name in WEIGHTS]
    if word == "pair_ranks":
        assert (names["ecg_to_brain"] == 1).all()
