"""Keep a reproduction with machine and commit, and draw its summary into docs/reproduce.md.

``python bench/reproduction.py OUT NAME [COMMIT]`` takes OUT/reproduction.json to ``bench/results/NAME.json`` (of the
sources at COMMIT, by default the present ones) and redraws the page; without arguments it only redraws it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import machine
import report

from sleepfm_fast.reproduction.paper_tables import PaperTable
from sleepfm_fast.reproduction.tables import draw

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DOC = HERE.parent / "docs" / "reproduce.md"
# Stored runs that the page shows, and the word of their marks in it.
SHOWN = {"reproduce-smoke": "reproduction", "reproduce-study": "study"}
RESULT, STUDY = (RESULTS / f"{name}.json" for name in SHOWN)


def stored(record: dict[str, Any], name: str, commit: str | None = None) -> dict[str, Any]:
    """Add what the reproduction cannot know: the commit and the processor."""
    facts = machine.record()
    return {**record, "kind": "experiment", "name": name, "machine": {**facts, "commit": commit or facts["commit"]}}


def shown(cell: dict[str, Any], table: str) -> bool:
    """Whether a cell is in the summary: of tables by class the macro figures, of retrieval recall."""
    if table in ("Table 4", "Table 5"):
        return bool(cell["figure"] == "recall@10")
    return bool(cell["row"] == "macro") if table.startswith("Table ") else True


def summary(document: dict[str, Any]) -> str:
    """Draw the page's tables."""
    lines: list[str] = []
    for table in document["tables"]:
        cells = [cell for cell in table["cells"] if shown(cell, table["name"])]
        rows = {"Table 4": "query -> candidates", "Table 5": "query -> candidates", "Figure 3": "pretrained on"}
        head = PaperTable(
            table["name"],
            table["title"],
            rows.get(table["name"], "class" if table["name"].startswith("Table ") else "subjects"),
            (),
        )
        encoder = document.get("encoder", "tiny")  # not kept at first, when all was tiny
        drawn = draw(head, cells, simulated=document["cohort"]["simulated"], encoder=encoder)
        lines += [f"#{drawn[0]}", *drawn[1:]]
    names, m = {table["name"] for table in document["tables"]}, document["machine"]
    # What OUT was used for besides is not in these tables.
    steps = [step for step in document["steps"].values() if names & set(step.get("serves", names))]
    spent = sum(step["seconds"] for step in steps)
    lines.append(
        f"`bench/results/{document['name']}.json`: {len(steps)} steps, {spent / 60:.0f} min in all, commit "
        f"{m['commit']}, {m['cpu_model']}, {m['cpu_cores']} cores (load average {m['load_average']}), "
        f"torch {m['torch']}."
    )
    return "\n".join(lines)


def redrawn(page: str, document: dict[str, Any]) -> str:
    """Return a page with the summary between its marks."""
    mark = SHOWN[document["name"]]
    return report.rewritten(page, summary(document), f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->")


def main(arguments: list[str]) -> int:
    """Store and redraw."""
    if len(arguments) not in (0, 2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments:
        record = json.loads((Path(arguments[0]) / "reproduction.json").read_text(encoding="utf-8"))
        document = stored(record, *arguments[1:])
        (RESULTS / f"{arguments[1]}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = DOC.read_text(encoding="utf-8")
    for file in (RESULT, STUDY):
        page = redrawn(page, json.loads(file.read_text(encoding="utf-8")))
    DOC.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
