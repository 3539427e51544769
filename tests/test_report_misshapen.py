"""Records that were edited or come from another version: whatever is wrong, a page is written."""

from __future__ import annotations

import copy
import json
import random
import shutil

import pytest
from report_runs import full_run

from sleepfm_fast import report

ODD = (None, True, -1, 0, 1e308, "x", [], {}, [1, "a"], {"a": 1}, "<b>", 3.5)


def places(value, path=()):
    """Paths to everything within a JSON value, of long lists the first thirty entries."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:30]) if isinstance(value, list) else ()
    for key, entry in inner:
        yield (*path, key)
        yield from places(entry, (*path, key))


def spoil(value, rng):
    """Delete or replace a few entries, wherever they are."""
    for _ in range(rng.choice((1, 2, 4))):
        *above, last = rng.choice(list(places(value)) or [()])
        holder = value
        for key in above:
            holder = holder[key]
        if rng.random() < 0.3:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(rng.choice(ODD))
    return value


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("seed", [*range(24), 88, 99, 112])
def test_any_record_may_be_wrong(whole, tmp_path, seed):
    rng = random.Random(seed)
    run = shutil.copytree(whole, tmp_path / "run")
    files = [*sorted(run.rglob("result.json")), run / "config.json", run / "embeddings" / "embeddings.json"]
    for file in rng.sample(files, 3):
        file.write_text(json.dumps(spoil(json.loads(file.read_text()), rng)))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for _ in range(3):
        i = rng.randrange(len(lines))
        lines[i] = json.dumps(spoil(json.loads(lines[i]), rng))
    (run / "metrics.jsonl").write_text("\n".join(lines))
    report.main(report.Config((run,), projection="pca"))
    assert (run / "report.html").read_text().endswith("</html>\n")
    assert json.loads((run / "report.json").read_text())["sections"]
