"""The report's figures as SVG files: plain, whole, and with the points that the page draws."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from browser import browse, executable
from report_runs import full_run
from test_report import figures_of, make, run

from sleepfm_fast import report
from sleepfm_fast.reporting.drawing import points
from sleepfm_fast.reporting.figure_files import MARK, figure_svg, slug
from sleepfm_fast.reporting.look import attributes_of, colour, sheet
from sleepfm_fast.reporting.page import Figure, table
from sleepfm_fast.reporting.plot import MARKERS, Plot, legend
from sleepfm_fast.reporting.scale import Scale

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "x/<b>&\"'\u202e"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = full_run(tmp_path_factory.mktemp("drawn") / "run", names=[f"{HOSTILE}{k}" for k in range(6)])
    figures = folder / "figures"
    _, _, numbers, record = make(folder, figures=figures)
    return folder, figures, record, numbers


def test_every_drawn_figure_is_a_file_and_the_numbers_name_it(drawn):
    folder, figures, record, numbers = drawn
    files = sorted(path.name for path in figures.iterdir())
    named = [f["svg"] for f in figures_of(numbers).values() if "svg" in f]
    assert sorted(named) == files
    assert record["figure_files"] == len(files) > 10
    assert not [path for path in folder.parent.rglob("*.svg") if path.parent != figures]
    assert all(re.fullmatch(r"[a-z0-9-]+\.svg", name) for name in files)
    drawn_titles = {title for (_, _, title), f in figures_of(numbers).items() if "svg" in f}
    assert {"ROC curves", "Confusion matrix", "Calibration", "Clips by sleep stage"} <= drawn_titles
    assert not {"Figures of each class", "Commands", "All options"} & drawn_titles


def test_a_file_needs_nothing_else(drawn):
    for path in drawn[1].iterdir():
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text.encode())
        assert root.tag == f"{SVG}svg"
        width, height = float(root.get("width")), float(root.get("height"))
        assert width in (360, 720)
        assert 30 < height < 3000
        assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
        assert root.get("font-family").startswith("Arial, Helvetica")
        assert [node.tag for node in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
        assert root[0].text
        ground = root[2]
        assert (ground.get("width"), ground.get("fill")) == (root.get("width"), "#ffffff")
        for node in root.iter():
            assert node.tag.startswith(SVG), "one namespace, so no HTML"
            assert not {"class", "style", "href"} & set(node.attrib)
            assert not [v for v in node.attrib.values() if "var(" in v or "%" in v or "currentColor" in v or "nan" in v]
            if node.tag in (f"{SVG}text", f"{SVG}rect"):  # what is written and filled stands inside
                assert -1 <= float(node.get("x", "0")) <= width + 1
                assert -1 <= float(node.get("y", "0")) <= height + 1
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_names_stay_text(drawn):
    titles = [ET.parse(path).getroot()[0].text for path in drawn[1].glob("nights-*.svg")]
    assert titles
    assert all("<b>&\"'\ufffd" in title for title in titles)


def test_a_figure_alone_says_what_it_is(drawn):
    folder, figures, _, numbers = drawn
    page = (folder / "report.html").read_text(encoding="utf-8")
    for (section, group, title), figure in figures_of(numbers).items():
        if "svg" not in figure:
            continue
        root = ET.parse(figures / figure["svg"]).getroot()
        head, *others = [e for e in root.iter(f"{SVG}text") if e.get("font-size") in ("12", "14")]
        bold = [e.text for e in (head, *others) if e.get("font-size") == "14"]
        assert " ".join(bold).split() == f"{section}: {title}".split() or len("".join(bold)) > 40
        assert head.text == bold[0]
        y = [float(e.get("y")) for e in (head, *others)]
        assert y[0] == min(y) == 8 + 14
        assert root[0].text == ": ".join(filter(None, (section, group, title))).replace("\u202e", "\ufffd")
        assert 'font-size="14"' not in page
    staged = figures / "task-stage-probe-all-modalities-roc-curves.svg"
    texts = [e.text for e in ET.parse(staged).getroot().iter(f"{SVG}text")]
    assert texts[:2] == ["Sleep staging: ROC curves", "Probe, all modalities"]


def test_the_same_run_gives_the_same_bytes_and_old_figures_go(drawn, tmp_path):
    folder, figures, _, _ = drawn
    again = tmp_path / "again"
    again.mkdir()
    (again / "mine.svg").write_text("<svg/>")
    (again / "roc-of-last-year.svg").write_text(f'<?xml version="1.0"?>\n{MARK}\n<svg/>')
    report.main(report.Config((folder,), out=tmp_path / "r.html", figures=again, projection="pca", overwrite=True))
    assert (again / "mine.svg").read_text() == "<svg/>"
    assert {p.name: p.read_bytes() for p in again.iterdir() if p.name != "mine.svg"} == {
        p.name: p.read_bytes() for p in figures.iterdir()
    }


def test_figures_are_not_overwritten_unasked(drawn, tmp_path, capsys):
    folder, figures, _, _ = drawn
    status, _, err = run(capsys, folder, "--out", tmp_path / "r.html", "--figures", figures)
    assert status == 1
    assert "holds figures of a report already" in err
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, folder, "--out", tmp_path / "r.html", "--figures", tmp_path / "file")
    assert status == 1
    assert "is a file" in err
    assert not (tmp_path / "r.html").exists()


def test_the_command_in_the_page_repeats_it(drawn):
    (command,) = [f["data"] for (_, _, title), f in figures_of(drawn[3]).items() if title == "This report"]
    assert f"--figures {drawn[1]}" in command


def plot(**options):
    return Plot(Scale(0, 10), Scale(-1, 1), "name", "words", x_label="x in s", y_label="y in uV", **options)


def elements(svg, tag):
    return list(ET.fromstring(svg.encode()).iter(SVG + tag))


def test_points_stand_where_the_axes_say():
    p = plot(height_px=100)
    x, y = np.array([0.0, 2.5, 5.0, 10.0]), np.array([-1.0, 0.0, 1.0, 0.5])
    p.line(x, y, "s1")
    p.points(x, y, 2, labels=["a", "b<", "c", "d"])
    svg = figure_svg(Figure("t", p, "caption", []))
    left, width, top = 8 + 46, 360 - 16 - 46 - 14, 8 + 18 + 6 + 19 + 4  # the title, and the name of the y axis
    wanted = [(left + width * a / 10, top + 100 * (1 - b) / 2) for a, b in zip(x, y, strict=True)]
    (line,) = [e for e in elements(svg, "path") if e.get("stroke") == colour("--c1")]
    assert (line.get("stroke-dasharray"), line.get("fill")) == ("7 3", "none")
    np.testing.assert_allclose([(px, py) for _, px, py in points(line.get("d"))], wanted, atol=0.11)
    marks = [e for e in elements(svg, "path") if e.get("d") == MARKERS[2]]
    at = [tuple(map(float, re.findall(r"-?[\d.]+", e.get("transform")))) for e in marks]
    np.testing.assert_allclose(at, wanted, atol=0.11)
    assert [e[0].text for e in marks] == ["a", "b<", "c", "d"]
    assert {"x in s", "y in uV", "0", "10"} <= {e.text for e in elements(svg, "text")}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("M1 2h3v-4l-1-1z", [("M", 1, 2), ("L", 4, 2), ("L", 4, -2), ("L", 3, -3), ("Z", 1, 2)]),
        ("M1 2 3 4H0V.5Z", [("M", 1, 2), ("L", 3, 4), ("L", 0, 4), ("L", 0, 0.5), ("Z", 1, 2)]),
        ("M1 2h1zm1 1 2 2", [("M", 1, 2), ("L", 2, 2), ("Z", 1, 2), ("M", 2, 3), ("L", 4, 5)]),
        ("M0 0h0", [("M", 0, 0), ("L", 0, 0)]),
        ("", []),
    ],
)  # fmt: skip
def test_paths_are_read(path, wanted):
    assert list(points(path)) == wanted


def test_tables_and_words_are_no_figures():
    assert figure_svg(Figure("t", table(["a"], [["1"]], "c"), "", [])) is None
    assert figure_svg(Figure("t", "<p>words</p>", "", [], key=legend([("s0", "a")]))) is None


def test_long_keys_and_unknown_letters_are_broken_or_kept():
    p = plot()
    names = [f"a rather long name of run {k}" for k in range(5)] + ["\u7761\u7720"]
    svg = figure_svg(Figure("t", p, "", [], key=legend([(f"s{i}", n) for i, n in enumerate(names)])), "group")
    texts = {e.text: (float(e.get("x")), float(e.get("y"))) for e in elements(svg, "text")}
    assert set(names) <= set(texts)
    assert len({texts[n][1] for n in names}) > 2
    assert "<title>group: t</title>" in svg
    long = figure_svg(Figure(f"what {'w' * 100} is", p, "", []), f"of {'run ' * 40}")
    lines = [
        e.text for e in elements(long, "text") if e.get("font-size") == "14" or e.text.startswith(("of run", "run"))
    ]
    assert "".join("".join(lines).split()) == f"what{'w' * 100}isof{'run' * 40}"
    assert max(map(len, lines)) < 60
    assert slug("brain → ECG: rank 3 (\u7761) Ä") == "brain-to-ecg-rank-3-a"
    assert slug("\u7761\u7720") == ""


def test_looks_are_those_of_the_style_sheet():
    around = (("div", frozenset({"plot"})), ("svg", frozenset()), ("svg", frozenset({"data"})))

    def look(classes, tag="path"):
        return attributes_of((*around, (tag, frozenset(classes.split()))))

    assert look("area band s2") == {"fill": "#00805a", "opacity": ".18"}
    assert look("line s3 thin")["stroke-width"] == "1"
    assert "stroke-dasharray" not in look("line s3 thin")
    assert look("line chance")["stroke"] == colour("--soft") == "#4c5a69", "the light style, not the dark one"
    assert look("line")["stroke"] == colour("--ink")
    assert look("tick end", "text") == {"fill": "#4c5a69", "font-size": "12px", "text-anchor": "end"}
    assert len(sheet()[1]) > 60


def test_a_browser_draws_them(drawn, tmp_path):
    executable()
    files = sorted(drawn[1].iterdir())
    page = tmp_path / "all.html"
    images = "".join(f'<img src="{path.resolve().as_uri()}">' for path in files)
    script = (
        'addEventListener("load", () => { document.body.dataset.drawn ='
        " [...document.images].filter((i) => i.complete && i.naturalWidth >= 360).length; });"
    )
    page.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{images}<script>{script}</script>')
    text, console = browse(page, tmp_path / "profile", "--dump-dom", "--allow-file-access-from-files")
    assert f'data-drawn="{len(files)}"' in text
    assert console == []
    for path in files[:2]:
        dom, console = browse(path, tmp_path / "profile", "--dump-dom")
        assert "parsererror" not in dom
        assert console == []


def test_no_text_leaves_the_file(tmp_path):
    """Keys of long names were cut at the edge, where those of a cohort often differ."""
    names = [
        f"University-Hospital-Sleep-Laboratory-insomnia-cohort-visit-baseline-participant-{k:04d}" for k in range(6)
    ]
    folder = full_run(tmp_path / "a-run-with-the-long-name-of-an-experiment-2024-11-30", names=names)
    make(folder, figures=folder / "figures")
    for path in (folder / "figures").iterdir():
        root = ET.parse(path).getroot()
        for node in root.iter(f"{SVG}text"):
            x, size, text = float(node.get("x")), float(node.get("font-size")), node.text or ""
            length = 0.5 * size * len(text)  # Arial's letters are half an em wide on average
            left = {"start": x, "middle": x - length / 2, "end": x - length}[node.get("text-anchor", "start")]
            assert left >= -1, (path.name, text)
            assert left + length <= float(root.get("width")) + 1, (path.name, text)
    (plane,) = (folder / "figures").glob("plane-clips-by-subject.svg")
    written = "".join(node.text or "" for node in ET.parse(plane).getroot().iter(f"{SVG}text"))
    assert all(f"participant-{k:04d}" in written for k in (4, 5)), "the two held-out subjects"


def test_a_confusion_matrix_says_which_way_round_it_is(drawn):
    folder, figures, *_ = drawn
    (file,) = figures.glob("task-stage-*-confusion-matrix.svg")
    written = [node.text for node in ET.parse(file).getroot().iter(f"{SVG}text")]
    assert written.index("predicted") < written.index("true") < written.index("W")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<th scope="col" rowspan="2">true</th><th scope="colgroup" colspan="5">predicted</th>' in page


def test_one_value_is_drawn(tmp_path):
    """A training of fewer than twenty steps has one temperature, learning rate and speed: the plots were empty."""
    folder = full_run(tmp_path / "run")
    metrics = folder / "metrics.jsonl"
    steps = [line for line in metrics.read_text().splitlines() if '"step"' in line]
    metrics.write_text("\n".join([steps[0], next(line for line in steps if '"epoch", ' in line)]) + "\n")
    make(folder, figures=folder / "figures")
    for name in ("training-temperature", "training-learning-rate", "throughput-training-speed", "training-loss-of-run"):
        root = ET.parse(folder / "figures" / f"{name}.svg").getroot()
        series = "s7" if "loss" in name else "s0"
        mark = attributes_of((("path", frozenset({"mark", series})),))["fill"]
        assert [p for p in root.iter(f"{SVG}path") if p.get("fill") == mark and "translate" in p.get("transform", "")]
