"""Preprocess at the scale of cohorts: killed workers, shards that write together, dask, the manifest."""

from __future__ import annotations

import csv
import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from called import last_json
from foreign_claims import foreign_claim, renewed_elsewhere
from nights import contents, preprocess, run_preprocess, write_cohort, write_night

from sleepfm_fast.clips import ClipStore, ClipStoreError
from sleepfm_fast.cohorts import attempts
from sleepfm_fast.cohorts.attempts import outlive
from sleepfm_fast.cohorts.manifest import read_manifest
from sleepfm_fast.cohorts.shards import Shard, parse_shard
from sleepfm_fast.cohorts.store_claims import claimed_run
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution.parallel import WorkersLost
from sleepfm_fast.preprocess import cli
from sleepfm_fast.storage import claims
from sleepfm_fast.storage.claims import Claim, Claimed, beats, is_live

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort")


def manifest_rows(store: Path) -> list[dict[str, str]]:
    with (store / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(store: Path) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in manifest_rows(store)}


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sleepfm_fast.preprocess", *map(str, arguments)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, dict, str]:
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        pytest.fail(f"not done within 120 s\n{process.communicate()[1][-6000:]}")
    assert out, err
    return process.returncode, last_json(out), err


# ------------------------------------------------------------------------------------------------------ dead workers


def test_workers_killed_from_outside_cost_no_night(tmp_path: Path, capsys) -> None:
    folder, store = tmp_path / "nights", tmp_path / "store"
    folder.mkdir()
    n_nights = 30
    for i in range(n_nights):
        write_night(folder / f"n{i:02d}.edf", seconds=600, stages="W12R" * 5, seed=i)
    process = start(folder, store, "--workers", "2")
    n_killed = 0
    # What was in hand is tried again when all others are done: a night that is killed then as well has failed.
    while process.poll() is None and n_killed < 2 and len([*store.glob("recordings/*.json")]) < n_nights - 10:
        time.sleep(0.005)
        for mark in sorted((store / "running" / "nights").glob("*")):
            try:
                pid = int(mark.read_text().split()[-1])
                if str(process.pid) in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]:
                    os.kill(pid, signal.SIGKILL)
                    n_killed += 1
                    time.sleep(0.3)
                    break
            except (OSError, ValueError, IndexError):
                continue  # the night was finished, or its mark is being written
    status, result, err = finish(process)
    assert n_killed >= 1
    assert "a worker process died" in err
    assert (status, result["nights"], result["added"], result["failed"]) == (0, n_nights, n_nights, []), err
    ClipStore(store, verify=True)
    preprocess(capsys, folder, tmp_path / "undisturbed")
    assert contents(store) == contents(tmp_path / "undisturbed")
    rows = rows_of(store)
    assert len(rows) == n_nights
    assert {row["status"] for row in rows.values()} == {"ingested"}


def run_with_a_deadly_night(cohort: Path, store: Path) -> subprocess.CompletedProcess[str]:
    """Run preprocess with workers that the system kills whenever they work on b2."""
    script = f"""
import os, sys
from sleepfm_fast import preprocess
from sleepfm_fast.cohorts import attempts, night
original = night.process_night
def process(path, *rest):
    if path.name == "b2.bdf":
        os.kill(os.getpid(), 9)
    return original(path, *rest)
def attempt(*arguments):
    import sleepfm_fast.cohorts.night as night
    night.process_night = process
    return night.attempt_night(*arguments)
attempts.attempt_night = attempt
sys.exit(preprocess.cli([{str(cohort)!r}, {str(store)!r}, "--workers", "2"]))
"""
    return subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_nights_whose_results_died_with_a_worker_are_not_done_again(
    cohort: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """They are in the store; what an earlier run has left there is no outcome of this one."""
    store, tried = tmp_path / "store", []

    def results(work, arguments, engine, *, own_process):
        first = not tried
        for path, *rest in arguments:
            tried.append(path.name)
            if first and path.name == "b1.edf":  # whose worker dies before it begins
                continue
            row = work(path, *rest)
            if not first:
                yield row
        if first:
            raise WorkersLost("one of them")

    monkeypatch.setattr(attempts, "in_parallel", results)
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["added"], tried) == (0, 4, ["a1.edf", "a2.edf", "b1.edf", "b2.bdf", "b1.edf"])
    assert {row["status"] for row in rows_of(store).values()} == {"ingested"}
    write_night(cohort / "b1.edf", seed=34)
    tried.clear()
    status, result = preprocess(capsys, cohort, store, "--overwrite")
    assert (status, tried) == (0, ["b1.edf", "b1.edf"])
    monkeypatch.undo()
    preprocess(capsys, cohort, tmp_path / "fresh")
    assert contents(store) == contents(tmp_path / "fresh")


def test_a_night_that_kills_its_worker_twice_has_failed_and_the_others_have_not(
    cohort: Path, tmp_path: Path, capsys
) -> None:
    store = tmp_path / "store"
    for attempt in range(2):
        done = run_with_a_deadly_night(cohort, store)
        assert done.returncode == 1, done.stderr
        result = last_json(done.stdout)
        assert (result["nights"], result["added"]) == (3, 0 if attempt else 3)
        assert len(result["failed"]) == 1
        assert "b2.bdf was not finished: it ended its worker process, the second time" in result["failed"][0]["reason"]
        # Known to be deadly, it is tried alone at once: nobody else is disturbed.
        assert ("a worker process died" in done.stderr) == (attempt == 0)
    assert rows_of(store)["b2"]["status"] == "failed"
    assert len(ClipStore(store, verify=True).recordings) == 3
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["nights"], result["added"]) == (0, 4, 1)
    assert rows_of(store)["b2"]["status"] == "ingested"


def test_after_a_death_no_night_is_worked_on_in_this_process(tmp_path: Path) -> None:
    """Of a company with a deadly night the last may be deadly too, and what is left alone would need no worker."""
    marks = {Path(name): tmp_path / name for name in ("a", "b")}
    calls, done = [], []

    def attempt(paths: list[Path], *, own_process: bool) -> bool:
        calls.append(([path.name for path in paths], own_process))
        if Path("a") in paths:
            marks[Path("a")].touch()
            return False
        done.extend(paths)
        return True

    given_up = []
    outlive({path: path.name for path in marks}, marks, [], attempt, done, given_up.append)
    assert calls == [(["a", "b"], False), (["b"], True), (["a"], True)]
    assert given_up == [Path("a")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_shrinks_while_it_is_read_costs_its_own_night(cohort: Path, tmp_path: Path, workers: int) -> None:
    """Memory that is mapped from what a file no longer has ends the process by SIGBUS."""
    store = tmp_path / "store"
    script = f"""
import os, sys
from sleepfm_fast import preprocess
from sleepfm_fast.cohorts import attempts
def attempt(path, *rest):
    import sleepfm_fast.cohorts.night as night
    from sleepfm_fast.formats import segments
    original = segments.record_samples
    def shrinking(recording):
        mapped = original(recording)
        if recording.path.name == "b2.bdf":
            os.truncate(recording.path, recording.path.stat().st_size // 2)
        return mapped
    segments.record_samples = shrinking
    try:
        return night.attempt_night(path, *rest)
    finally:
        segments.record_samples = original
attempts.attempt_night = attempt
sys.exit(preprocess.cli([{str(cohort)!r}, {str(store)!r}, "--workers", "{workers}"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    result = last_json(done.stdout)
    assert (result["nights"], result["added"]) == (3, 3)
    assert [Path(f["path"]).name for f in result["failed"]] == ["b2.bdf"]
    assert "it ended its worker process" in result["failed"][0]["reason"]
    assert "when a file shrinks while it is read" in result["failed"][0]["reason"]
    assert len(ClipStore(store, verify=True).recordings) == 3


def test_a_killed_run_leaves_no_folder_for_arrays_in_shared_memory(tmp_path: Path) -> None:
    folder, store = tmp_path / "nights", tmp_path / "store"
    folder.mkdir()
    for i in range(12):
        write_night(folder / f"n{i:02d}.edf", seconds=600, stages="W12R" * 5, seed=i)
    process = start(folder, store, "--workers", "2")
    while process.poll() is None and not list(store.glob("running/nights/*")):
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGKILL)  # what would tidy up too
    process.communicate()
    assert not list(Path("/dev/shm").glob(f"joblib_memmapping_folder_{process.pid}_*"))


@pytest.mark.parametrize(
    ("number", "to_all"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, True), (signal.SIGUSR1, True)],
)
def test_a_batch_system_that_stops_a_run_stops_its_workers_too(
    tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    """They would hold its output open, and whoever waits for the end of that, for minutes."""
    folder, store = tmp_path / "nights", tmp_path / "store"
    folder.mkdir()
    for i in range(12):
        write_night(folder / f"n{i:02d}.edf", seconds=600, stages="W12R" * 5, seed=i)
    process = start(folder, store, "--workers", "2")
    while process.poll() is None and not list(store.glob("running/nights/*")):
        time.sleep(0.005)
    if to_all:  # as a closing terminal does, or SLURM's --signal
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    try:
        err = process.communicate(timeout=45)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("workers outlive it")
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; what was finished is kept; the same command continues" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not list(store.parent.glob(".*.claim"))
    status, result, err = finish(start(folder, store, "--workers", "2"))
    assert (status, result["nights"]) == (0, 12), err


@pytest.mark.parametrize("place", ["none", "zw\u00f6lf", "long"])
def test_workers_need_no_folder_for_temporary_files(cohort: Path, tmp_path: Path, place: str) -> None:
    """There may be none that can be written, or one whose name joblib's tracker of folders cannot write down."""
    script = (
        "import sys, tempfile\n"
        "from sleepfm_fast import preprocess\n"
        "if sys.argv[1] == 'none':\n"
        "    tempfile._candidate_tempdir_list = lambda: ['/nowhere']\n"
        "sys.exit(preprocess.cli(sys.argv[2:]))\n"
    )
    folder = tmp_path / ("/".join(["x" * 200] * 3) if place == "long" else place)
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", script, place, cohort, tmp_path / "store", "--workers", "2"],
        cwd=REPOSITORY, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    assert last_json(done.stdout)["added"] == len(ClipStore(tmp_path / "store").recordings) > 0
    assert not list(folder.iterdir())


def test_what_a_killed_run_had_in_hand_is_tried_alone_and_out_of_this_process(cohort: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    script = f"""
import os, sys
from sleepfm_fast import preprocess
from sleepfm_fast.cohorts import attempts, night
original, parent = night.process_night, os.getpid()
def process(path, *rest):
    if path.name == "b1.edf":
        os.kill(os.getpid(), 9)
    return original(path, *rest)
def attempt(*arguments):
    import sleepfm_fast.cohorts.night as night
    night.process_night = process
    return night.attempt_night(*arguments)
attempts.attempt_night = attempt
sys.exit(preprocess.cli([{str(cohort)!r}, {str(store)!r}, "--workers", "1", "--backend", "threading"]))
"""
    command = [sys.executable, "-c", script]
    first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert first.returncode == -signal.SIGKILL  # a thread is of the process itself
    with pytest.raises(ClipStoreError, match="unfinished"):
        ClipStore(store)
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert second.returncode == 1, second.stderr
    result = last_json(second.stdout)
    assert result["nights"] == 3
    assert [Path(f["path"]).name for f in result["failed"]] == ["b1.edf"]


# ------------------------------------------------------------------------------------------------------------ shards


def test_shards_at_the_same_time_give_the_bytes_of_one_run(cohort: Path, tmp_path: Path, capsys) -> None:
    deep = cohort / "deep"
    deep.mkdir()
    for i in range(4):
        write_night(deep / f"c{i}.edf", seed=10 + i)
    write_night(deep / "a1.edf", seed=20)  # a second a1: both get ids with a digest, whichever job comes first
    (cohort / "broken.edf").write_bytes(b"0       " + bytes(100))
    store = tmp_path / "store"
    jobs = [start(cohort, store, "--shard", f"{i}/3", "--workers", "1") for i in (1, 2, 3)]
    ended = [finish(job) for job in jobs]
    assert sorted(status for status, _, _ in ended) == [0, 0, 1], ended
    assert sum(result["added"] for _, result, _ in ended) == 9
    assert sum(result["index"] == "written" for _, result, _ in ended) >= 1
    last = max((result for _, result, _ in ended), key=lambda result: result["nights"])
    assert (last["nights"], last["index"]) == (9, "written")
    assert preprocess(capsys, cohort, tmp_path / "whole")[0] == 1
    assert contents(store) == contents(tmp_path / "whole")
    ClipStore(store, verify=True)
    rows = rows_of(store)
    assert {row["shard"] for row in rows.values()} == {"1/3", "2/3", "3/3"}
    assert sorted(row["status"] for row in rows.values()) == ["failed"] + ["ingested"] * 9
    assert not list(store.glob("running/*"))
    assert not list(store.glob("manifest/*"))
    # nothing is left to do, for a shard as for the whole
    status, result = preprocess(capsys, cohort / "a1.edf", cohort / "a2.edf", store, "--shard", "2/2")
    assert (status, result["kept"], result["added"]) == (0, 1, 0)
    assert contents(store) == contents(tmp_path / "whole")


def test_a_shard_leaves_the_index_to_those_still_at_work(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    (store / "running").mkdir(parents=True)
    other = Claim(store / "running" / "shard-2-of-2.claim")
    status, result = preprocess(capsys, cohort, store, "--shard", "1/2")
    assert (status, result["added"], result["index"]) == (0, 2, "left to 1 other shard at work")
    with pytest.raises(ClipStoreError, match="unfinished"):
        ClipStore(store)
    assert {entry.id for entry in read_manifest(store)} == {"a1", "b1"}
    other.release()
    status, result = preprocess(capsys, cohort, store, "--shard", "2/2")
    assert (status, result["added"], result["nights"], result["index"]) == (0, 2, 4, "written")
    assert {entry.id for entry in read_manifest(store)} == {"a1", "a2", "b1", "b2"}


def test_a_killed_shard_does_not_hold_the_others(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    (store / "running").mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    claim = Claim(store / "running" / "shard-2-of-2.claim")
    claim.release()
    holder = claims.Holder(claim.holder.host, claim.holder.system, dead.pid, "1")
    claim.path.write_text(json.dumps(holder.__dict__))
    status, result = preprocess(capsys, cohort, store, "--shard", "1/2")
    assert (status, result["nights"], result["index"]) == (0, 2, "written")
    assert len(ClipStore(store)) == 8


def test_recordings_that_other_shards_left_out_are_said(cohort: Path, tmp_path: Path, capsys) -> None:
    """A task that was killed, or nights that came later, leave a store that can be used and is not the cohort."""
    store = tmp_path / "store"
    arguments = [str(cohort), str(store), "--workers", "1", "--shard"]
    assert cli([*arguments, "1/2"]) == 0
    shown = capsys.readouterr()
    n_others = len(read_manifest(store))
    assert last_json(shown.out)["absent"] == n_others == 2
    assert "notice: the store lacks 2 recordings that other tasks of the array were to ingest (such as a2.edf)" in (
        shown.err
    )
    assert "next:" not in shown.err
    write_night(cohort / "a0.edf", seed=30)  # moves all others to the next task
    assert cli([*arguments, "2/2"]) == 0
    shown = capsys.readouterr()
    assert "lacks 3 recordings that other tasks of the array were to ingest (such as a0.edf)" in shown.err
    assert cli([*arguments, "1/2"]) == 0
    shown = capsys.readouterr()
    assert last_json(shown.out)["absent"] == 0
    assert "next: python -m sleepfm_fast.train" in shown.err
    assert len(ClipStore(store).recordings) == 5


def test_claims_of_other_machines_are_void_when_they_are_not_renewed(tmp_path: Path, monkeypatch) -> None:
    path = foreign_claim(tmp_path / "x.claim")
    assert is_live(path)
    with pytest.raises(Claimed, match="process 1 on elsewhere"):
        Claim(path)
    old = time.time() - claims.STALE_S - 5
    os.utime(path, (old, old))
    assert not is_live(path)
    claim = Claim(path)
    assert claim.holds()
    assert beats(path)
    claim.release()
    assert not path.exists()
    # a claim from elsewhere counts as alive at the end only when it is seen to be renewed
    foreign_claim(path)
    monkeypatch.setattr(claims, "STALE_S", 1.5)
    assert not beats(path)


@pytest.mark.parametrize("ahead_s", [0, 86400], ids=["fresh", "in the future"])
def test_claims_that_a_killed_job_of_another_machine_left_are_watched(
    tmp_path: Path, monkeypatch, capsys, ahead_s: int
) -> None:
    """Their time lies in the future where a clock was set back."""
    monkeypatch.setattr(claims, "STALE_S", 1.5)
    running = tmp_path / "running"
    running.mkdir()

    def left(path: Path) -> None:
        foreign_claim(path)
        os.utime(path, (time.time() + ahead_s,) * 2)

    left(tmp_path / ".out.claim")
    claims.claim_to_write(tmp_path / "out").release()
    left(running / "lock")
    with claims.waited(running / "lock", print, "the lock"):
        pass
    # Of this run, and of one that it may not join; those of its own array do not keep it from starting.
    for path in ("shard-1-of-2.claim", "all.claim"):
        left(running / path)
    left(running / "shard-2-of-2.claim")
    with claimed_run(tmp_path, "shard-1-of-2", Shard(1, 2)) as claim:
        assert claim.holds()
    # While the first claim of the two is watched, the second goes stale, unless its time is in the future.
    n_checked = capsys.readouterr().err.count("checking whether process 1 on elsewhere is still writing")
    assert n_checked == (3 if ahead_s else 2)


def test_a_living_run_of_another_machine_is_not_joined(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "running").mkdir()
    path = foreign_claim(tmp_path / "running" / "all.claim")
    for run, shard in (("all", None), ("shard-1-of-2", Shard(1, 2))):
        refused = pytest.raises(SleepfmError, match=r"another run \(process 1 on elsewhere, all\) is writing to")
        with renewed_elsewhere(path), refused, claimed_run(tmp_path, run, shard):
            pass
    assert path.exists()


@pytest.mark.parametrize("call", ["open", "fsync", "link"])
def test_a_process_killed_while_it_claims_leaves_no_claim(tmp_path: Path, monkeypatch, call: str) -> None:
    path = tmp_path / "x.claim"
    if (child := os.fork()) == 0:
        function = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *a, **k: (function(*a, **k), os._exit(0)))
        Claim(path)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    claim = Claim(path)  # at once, not when it is stale
    assert [p.name for p in tmp_path.iterdir()] == ["x.claim"]
    claim.release()
    assert not list(tmp_path.iterdir())


def test_claims_without_hard_links(tmp_path: Path, monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    claim = Claim(tmp_path / "x.claim")
    with pytest.raises(Claimed, match=f"process {os.getpid()} on "):
        Claim(claim.path)
    assert claim.holds()
    claim.release()
    assert not list(tmp_path.iterdir())


def test_a_link_whose_answer_was_lost_is_a_claim(tmp_path: Path, monkeypatch) -> None:
    link = os.link

    def lost(*paths: object) -> None:
        link(*paths)
        raise FileExistsError(errno.EEXIST, "the server did it at the first asking")

    monkeypatch.setattr(os, "link", lost)
    claim = Claim(tmp_path / "x.claim")
    assert claim.holds()
    claim.release()


def test_a_claim_of_another_machine_that_is_renewed_counts(tmp_path: Path) -> None:
    path = foreign_claim(tmp_path / "x.claim")
    with renewed_elsewhere(path):
        assert beats(path)


def test_a_claim_is_renewed_and_its_loss_is_noticed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.02)
    claim = Claim(tmp_path / "x.claim")
    os.utime(claim.path, (1, 1))
    deadline = time.monotonic() + 20
    while claim.path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert claim.path.stat().st_mtime > 1
    assert not claim.is_lost()
    with pytest.raises(Claimed):
        Claim(claim.path)
    foreign_claim(claim.path)
    assert not claim.holds()
    assert claim.is_lost()
    claim.path.write_text("")  # as where it cannot be read for a moment
    assert not claim.is_lost()
    claim.path.unlink()
    assert claim.is_lost()
    foreign_claim(claim.path)
    claim.release()
    assert claim.path.exists(), "the claim of another process is not removed"


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "a/b", "1/0", "-1/3", "slurm"])
def test_a_wrong_shard_is_a_sentence(text: str) -> None:
    with pytest.raises(SleepfmError, match="--shard"):
        parse_shard(text, {})


def test_shards_part_the_nights() -> None:
    items = list(range(11))
    parts = [Shard(i, 4).of(items) for i in range(1, 5)]
    assert sorted(i for part in parts for i in part) == items
    assert {len(part) for part in parts} == {2, 3}


@pytest.mark.parametrize(
    ("task", "count", "low", "high", "expected"),
    [(1, 3, 1, 3, "1/3"), (0, 3, 0, 2, "1/3"), (9, 5, 1, 9, "5/5"), (7, 1, 7, 7, "1/1"), (4, 3, 1, 9, None)],
)
def test_the_place_in_a_job_array(task: int, count: int, low: int, high: int, expected: str | None) -> None:
    names = ("ID", "COUNT", "MIN", "MAX")
    environment = {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, (task, count, low, high), strict=True)}
    if expected is None:
        with pytest.raises(SleepfmError, match="without gaps"):
            parse_shard("slurm", environment)
    else:
        assert str(parse_shard("slurm", environment)) == expected


# ---------------------------------------------------------------------------------------------- manifest and clusters


def test_the_manifest_has_one_row_a_night_and_follows_what_happens(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    (cohort / "broken.edf").write_bytes(b"0       " + bytes(100))
    preprocess(capsys, cohort, store)
    rows = rows_of(store)
    assert set(rows) == {"a1", "a2", "b1", "b2", "broken"}
    sizes = {p.stem: p.stat().st_size for p in (store / "recordings").glob("*.bin")}
    assert {i: int(row["bytes"]) for i, row in rows.items() if i != "broken"} == sizes
    assert [rows[i]["clips"] for i in ("a1", "broken")] == ["4", "0"]
    assert all(float(row["seconds"]) >= 0 for row in rows.values())
    assert "broken.edf" in rows["broken"]["reason"]
    # what has failed and is no longer there
    (cohort / "broken.edf").unlink()
    preprocess(capsys, cohort, store)
    gone = rows_of(store)["broken"]
    assert (gone["status"], gone["clips"]) == ("gone", "0")
    assert rows["broken"]["reason"] in gone["reason"]
    assert {name: row for name, row in rows_of(store).items() if name != "broken"} == {
        name: row for name, row in rows.items() if name != "broken"
    }
    # a second run has nothing to say
    before = (store / "manifest.csv").read_bytes()
    preprocess(capsys, cohort, store)
    assert (store / "manifest.csv").read_bytes() == before
    # a changed source, and the same made again
    write_night(cohort / "b1.edf", seed=33, seconds=150)
    preprocess(capsys, cohort, store)
    assert (rows_of(store)["b1"]["status"], rows_of(store)["b1"]["clips"]) == ("changed", "4")
    preprocess(capsys, cohort, store, "--overwrite")
    assert (rows_of(store)["b1"]["status"], rows_of(store)["b1"]["clips"]) == ("ingested", "5")


def test_a_night_that_is_left_out_is_taken_out_when_told(cohort: Path, tmp_path: Path, capsys) -> None:
    store, overrides = tmp_path / "store", tmp_path / "o.json"
    overrides.write_text('{"b*.edf": "exclude"}')
    status, result = preprocess(capsys, cohort, tmp_path / "without", "--overrides", overrides)
    assert (status, result["nights"], [Path(p).name for p in result["left_out"]]) == (0, 3, ["b1.edf"])
    assert {row["path"].rpartition("/")[2]: row["status"] for row in manifest_rows(tmp_path / "without")} == {
        "a1.edf": "ingested", "a2.edf": "ingested", "b1.edf": "left_out", "b2.bdf": "ingested"
    }  # fmt: skip
    preprocess(capsys, cohort, store)
    status, result = preprocess(capsys, cohort, store, "--overrides", overrides)
    assert (status, result["nights"], len(result["changed"])) == (1, 4, 1)
    assert "leaves" in result["changed"][0]["reason"]
    status, result = preprocess(capsys, cohort, store, "--overrides", overrides, "--overwrite")
    assert (status, result["nights"], result["kept"], result["added"]) == (0, 3, 3, 0)
    assert contents(store) == contents(tmp_path / "without")
    assert result["absent"] == 0, "what is left out is no other task's"
    # and taken in again without the entry, which is said and not forgotten
    for further in ((), ("--overwrite",), ("--shard", "1/2")):
        assert cli([str(cohort), str(store), "--workers", "1", *further]) == 1
        assert "1 recording (b1.edf) was left out of" in capsys.readouterr().err
    assert contents(store) == contents(tmp_path / "without")
    overrides.write_text("{}")
    status, result = preprocess(capsys, cohort, store, "--overrides", overrides)
    assert (status, result["nights"], result["added"]) == (0, 4, 1)
    assert preprocess(capsys, cohort, store)[1]["kept"] == 4
    assert {row["status"] for row in manifest_rows(store)} == {"ingested"}


def test_a_night_that_is_left_out_when_the_configuration_changes_leaves_no_file(
    cohort: Path, tmp_path: Path, capsys
) -> None:
    """Its samples stayed, and once its recording was gone every later run was refused for its sake."""
    store, overrides = tmp_path / "store", tmp_path / "o.json"
    overrides.write_text('{"b1.edf": "exclude"}')
    preprocess(capsys, cohort, store)
    changed = ("--overrides", overrides, "--events-scored")
    status, result = preprocess(capsys, cohort, store, *changed, "--overwrite")
    assert (status, result["nights"]) == (0, 3)
    assert sorted(file.name for file in (store / "recordings").iterdir()) == [
        f"{name}.{kind}" for name in ("a1", "a2", "b2") for kind in ("bin", "json")
    ]
    (cohort / "b1.edf").unlink()
    status, result = preprocess(capsys, cohort, store, *changed)
    assert (status, result["nights"]) == (0, 3)


def test_a_torn_line_and_a_missing_row_do_no_harm(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    (store / "manifest.csv").unlink()
    (store / "manifest").mkdir(exist_ok=True)
    (store / "manifest" / "all.csv").write_text("id,path,status,reason,seconds,clips,bytes,shard,host,finished\na1,/x")
    assert read_manifest(store) == []
    preprocess(capsys, cohort, store)
    rows = rows_of(store)
    assert {i: row["status"] for i, row in rows.items()} == dict.fromkeys(("a1", "a2", "b1", "b2"), "ingested")


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_missing_cluster_package_is_a_sentence(
    backend: str, cohort: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, {"dask": "distributed", "ray": "ray"}[backend], None)
    from sleepfm_fast.preprocess import cli

    assert cli([str(cohort), str(tmp_path / "store"), "--backend", backend]) == 1
    assert f"pip install 'sleepfm_fast[{backend}]'" in capsys.readouterr().err


@pytest.mark.parametrize(("backend", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_on_this_machine(backend: str, package: str, cohort: Path, tmp_path: Path, capsys) -> None:
    if importlib.util.find_spec(package) is None:  # ray takes seconds to import, and warns
        pytest.skip(f"{backend} is not installed: pip install 'sleepfm_fast[{backend}]'")
    done = run_preprocess(cohort, tmp_path / backend, "--backend", backend, "--workers", "2")
    assert last_json(done.stdout)["added"] == 4, done.stderr
    preprocess(capsys, cohort, tmp_path / "here")
    assert contents(tmp_path / backend) == contents(tmp_path / "here")


def test_a_dask_scheduler_that_does_not_answer_is_a_sentence() -> None:
    pytest.importorskip("distributed", reason="dask is not installed: pip install 'sleepfm_fast[dask]'")
    script = """
from sleepfm_fast.execution import parallel
from sleepfm_fast.errors import SleepfmError
parallel.CONNECT_S = 0.5
try:
    with parallel.open_engine("dask", 1, "tcp://127.0.0.1:9"):
        pass
except SleepfmError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "tcp://127.0.0.1:9 does not answer" in done.stdout, done.stderr


def test_dask_needs_its_backend(cohort: Path, tmp_path: Path, capsys) -> None:
    assert preprocess(capsys, cohort, tmp_path / "s", "--dask-scheduler", "tcp://x:1")[0] == 2
    assert preprocess(capsys, cohort, tmp_path / "s", "--json", tmp_path / "r.json")[0] == 2
