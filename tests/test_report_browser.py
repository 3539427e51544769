"""The report in a real browser: no message in the console, no sideways scrolling on a phone, a PDF with every page."""

from __future__ import annotations

import re

import pytest
from browser import browse, executable, measure
from report_runs import full_run

from sleepfm_fast import report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    executable()
    folder = full_run(tmp_path_factory.mktemp("browsed") / "run", names=[f"subject {'long' * k}" for k in range(6)])
    report.main(report.Config((folder,), projection="pca"))
    return folder / "report.html"


def test_the_console_stays_silent_and_everything_is_drawn(page, tmp_path):
    text, console = browse(page, tmp_path / "profile", "--dump-dom")
    assert console == []
    assert "Files behind the figures</h2>" in text


def test_the_console_is_listened_to(tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><script>throw new Error('planted')</script>")
    _, console = browse(broken, tmp_path / "profile", "--dump-dom")
    assert "planted" in " ".join(console)


@pytest.mark.parametrize("width_px", [320, 360, 800])
def test_nothing_sticks_out(page, tmp_path, width_px):
    found, console = measure(page, tmp_path, width_px)
    assert found["client"] == str(width_px)
    assert found["wide"] == ""
    assert int(found["scroll"]) <= width_px
    assert int(found["height"]) > 3000
    assert found["svg"] == "0", "a plot has no height"
    assert console == []


def test_what_sticks_out_is_seen(tmp_path):
    wide = tmp_path / "wide.html"
    wide.write_text('<!DOCTYPE html><body style="margin:0"><div class="x" style="width:500px">x</div>')
    found, _ = measure(wide, tmp_path, 360)
    assert found["wide"] == "DIV.x"
    assert int(found["scroll"]) == 500


def test_the_content_policy_blocks_what_a_name_might_smuggle_in(page, tmp_path):
    smuggled = tmp_path / "smuggled.html"
    image = '<img src="https://example.invalid/x.png"><script>document.title="run"</script>'
    smuggled.write_text(page.read_text().replace("<main", f"{image}<main", 1))
    text, console = browse(smuggled, tmp_path / "profile", "--dump-dom")
    assert "<title>run</title>" not in text
    assert len([line for line in console if "Content Security Policy" in line]) >= 2


def test_it_prints(page, tmp_path):
    target = tmp_path / "report.pdf"
    browse(page, tmp_path / "profile", f"--print-to-pdf={target}", "--no-pdf-header-footer")
    data = target.read_bytes()
    assert data.startswith(b"%PDF")
    n_pages = len(re.findall(rb"/Type\s*/Page\b", data))
    assert 4 <= n_pages <= 60
