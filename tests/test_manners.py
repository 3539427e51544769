"""What a command does where its output is closed, full or in another encoding, and where memory or disk runs out."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from foreign_claims import foreign_claim, renewed_elsewhere
from numba.core.caching import IndexDataCacheFile

from sleepfm_fast import probe, simulate
from sleepfm_fast.cli import command, interruption
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution.compiled import compiled, may_cache
from sleepfm_fast.execution.parallel import Engine, in_parallel
from sleepfm_fast.results import claimed_result, find_results, write_result
from sleepfm_fast.rundir import RunDirectory, read_state, read_tensors, write_checkpoint
from sleepfm_fast.storage import claims
from sleepfm_fast.storage.atomic import replace_file, replace_folder, write_json
from sleepfm_fast.storage.claims import Claim, claim_to_write

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import sys
from dataclasses import dataclass
from sleepfm_fast.cli import command
@dataclass(frozen=True)
class Config:
    "Nothing."
def main(config):
    return {"name": "zw\\u00f6lf \\udce9"}
sys.exit(command.run(Config, main))
"""


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_a_reader_that_has_enough_is_no_error(arguments):
    process = start(*arguments, stdout=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, err
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_result_that_cannot_be_printed_is_a_sentence():
    with Path("/dev/full").open("w") as full:
        process = start(stdout=full)
        err = process.communicate()[1]
    assert process.returncode == 1
    assert "error: standard output: No space left on device" in err
    assert "Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_that_is_full_does_not_end_the_work():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, stderr=full, text=True, check=False
        )
    assert done.returncode == 0
    assert json.loads(done.stdout)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_help_that_cannot_be_written_is_a_sentence():
    with Path("/dev/full").open("w") as full:
        process = start("--help", stdout=full)
        err = process.communicate()[1]
    assert process.returncode == 1
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_wrong_usage_is_wrong_usage_where_the_log_is_full():
    with Path("/dev/full").open("w") as full:
        command_line = [sys.executable, "-c", SCRIPT, "--unknown"]
        done = subprocess.run(command_line, cwd=ROOT, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 2


def test_a_list_of_commands_that_nobody_reads_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "sleepfm_fast", "--help"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, err
    assert err == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_name_in_any_encoding_is_printed(encoding):
    process = start(stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding})
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out) == {"name": "zw\u00f6lf \udce9"}
    assert len(out.splitlines()) == 1


OBEYED = "a\x1b]0;title\x07\x1b[2J\x9b31m\x7f\u202eb\nerror: forged\u2028c\rd"


def test_a_terminal_is_not_commanded_by_a_name(capsys):
    command.say(f"notice: {OBEYED} caf\udce9 zw\u00f6lf\t1")
    shown = r"a\x1b]0;title\x07\x1b[2J\x9b31m\x7f\u202eb\nerror: forged\u2028c\rd"
    assert capsys.readouterr().err == f"notice: {shown} caf\\udce9 zw\u00f6lf\t1\n"
    assert command.show({"name": OBEYED})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": OBEYED}
    assert command.printable(out[:-1]) == out[:-1]


def test_json_files_hold_names_that_are_not_utf8(tmp_path):
    write_json(tmp_path / "x.json", {"path": "caf\udce9", "name": "zw\u00f6lf"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"path": "caf\udce9", "name": "zw\u00f6lf"}
    assert json.loads(command.to_json({"path": Path("caf\udce9")})) == {"path": "caf\udce9"}
    assert "zw\u00f6lf" in command.to_json({"name": "zw\u00f6lf"})


def test_a_name_of_another_locale_is_not_called_wrong(tmp_path):
    """As on a machine whose locale is not UTF-8, where Python does not turn to UTF-8 by itself."""
    script = (
        "import pathlib, sys; from sleepfm_fast.storage import claims; claims.claim_to_write(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "r\u00fcn"],
        cwd=ROOT, env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "is read as ascii here, and not as UTF-8" in done.stderr
    assert "Set PYTHONUTF8=1 or a UTF-8 locale" in done.stderr
    assert not any(tmp_path.iterdir())


def test_what_could_not_be_read_again_is_refused_before_any_work(tmp_path):
    with pytest.raises(SleepfmError, match=r"caf\\xe9.* is not valid UTF-8"):
        claim_to_write(tmp_path / "caf\udce9" / "result")
    assert not any(tmp_path.iterdir())
    path = tmp_path / "caf\udce9"
    path.mkdir()
    write_checkpoint(path / "best.safetensors", {}, {})
    with pytest.raises(SleepfmError, match=r"not valid UTF-8\. Rename the folder"):
        read_tensors(path / "best.safetensors")


def test_the_subjects_of_a_run_are_the_same_in_every_locale(tmp_path):
    RunDirectory(tmp_path / "run").create({"subjects": {"J\u00fcrgen": 0}})
    code = (
        "import sys, pathlib; from sleepfm_fast.rundir import RunDirectory; "
        "print(ascii(RunDirectory(pathlib.Path(sys.argv[1])).config()['subjects']))"
    )
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'J\\xfcrgen': 0}"


@dataclass(frozen=True)
class Config:
    """Nothing."""


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            "the GPU does not have enough memory",
        ),
        (MemoryError("Unable to allocate 8 GiB"), "there is not enough memory (Unable to allocate 8 GiB)"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "there is not enough memory",
        ),
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device."),
    ],
)
def test_a_shortage_is_no_bug(error, sentence, capsys):
    def main(config):
        raise error

    assert command.run(Config, main, []) == 1
    err = capsys.readouterr().err
    assert sentence in err
    assert "bug in" not in err


@dataclass(frozen=True)
class Batches:
    """Has an option that takes memory."""

    batch_size: int = 1


def test_a_shortage_names_the_options_that_the_command_has(capsys):
    def main(config):
        raise MemoryError

    for config, sentence in (
        (Config, "not enough memory. Stop other"),
        (Batches, "not enough memory. Lower --batch-size, or"),
    ):
        assert command.run(config, main, []) == 1
        assert sentence in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ writing


def test_an_error_of_the_disk_names_the_file(tmp_path):
    for writer in (replace_file, replace_folder):
        with pytest.raises(OSError, match="No space left") as caught, writer(tmp_path / "x"):
            raise OSError(28, "No space left on device")
        assert caught.value.filename == str(tmp_path / "x")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("nth", [1, 2], ids=["before the old one is moved", "before the new one is"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_a_folder_whose_replacement_fails_is_still_there(tmp_path, monkeypatch, nth, error):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "content").write_text("old")
    rename, calls = Path.rename, []

    def fail(self, target):
        calls.append(target)
        if len(calls) == nth:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(type(error)), replace_folder(tmp_path / "x") as folder:
        (folder / "content").write_text("new")
    assert {path.relative_to(tmp_path): path.read_text() for path in tmp_path.glob("*/*")} == {Path("x/content"): "old"}


def test_a_claim_that_could_not_be_written_holds_nobody_up(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SleepfmError, match="No space left on device"):
        claim_to_write(tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_what_killed_writers_left_is_no_result_and_is_swept(tmp_path):
    results = tmp_path / "run" / "results"
    write_result(results / "stage", {"command": "probe"}, {"clip": np.arange(3)})
    for name in ("stage.12-34.tmp", "old-stage.12-34.tmp", "stage.2.12-34.tmp"):
        write_result(results / name, {"command": "probe"}, {})
    assert [r.path.name for r in find_results(tmp_path / "run")] == ["stage"]
    with claimed_result(results / "stage", overwrite=True):
        # The third is of another result, `stage.2`, which another process may be writing.
        assert {p.name for p in results.iterdir()} == {"stage", ".stage.claim", "stage.2.12-34.tmp"}
    assert {p.name for p in results.iterdir()} == {"stage", "stage.2.12-34.tmp"}


def test_a_result_in_the_current_folder_and_through_a_link(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with claimed_result(Path()):
        write_result(Path(), {"command": "probe"}, {})
    (tmp_path / "link").symlink_to(tmp_path / "here")
    write_result(tmp_path / "link", {"command": "retrieve"}, {}, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "here" / "result.json").read_text())["command"] == "retrieve"


def test_a_result_that_was_finished_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "r"
    create = Claim.create

    def finished_meanwhile(claim):
        create(claim)
        write_result(path, {"command": "probe"}, {})

    monkeypatch.setattr(Claim, "create", finished_meanwhile)
    with pytest.raises(SleepfmError, match="exists and is not overwritten"), claimed_result(path):
        pass
    assert not (tmp_path / ".r.claim").exists()


def test_a_recording_that_the_disk_cut_short_is_not_kept(tmp_path, monkeypatch):
    """Pyedflib writes past a full disk without a word."""
    monkeypatch.setattr(simulate, "synchronise", lambda file: os.truncate(file, 100_000))
    config = simulate.Config(tmp_path / "edf", subjects=1, hours=0.05)
    with pytest.raises(SleepfmError, match=r"sim-0000.edf could not be written whole"):
        simulate.main(config)
    assert [p.name for p in (tmp_path / "edf").iterdir()] == ["simulation.json"]
    monkeypatch.undo()
    assert simulate.main(config)["written"] == 1


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
@pytest.mark.parametrize("n_bytes", [0, 7, 100])
def test_a_damaged_checkpoint_is_never_to_be_deleted_for_nothing(tmp_path, name, n_bytes):
    torch = pytest.importorskip("torch")
    for file in ("best.safetensors", "last.safetensors"):
        write_checkpoint(tmp_path / file, {"model/x": torch.zeros(9)}, {"step": 1})
    os.truncate(tmp_path / name, n_bytes)
    other = tmp_path / ("last.safetensors" if name == "best.safetensors" else "best.safetensors")
    for read in (read_tensors, read_state):
        with pytest.raises(SleepfmError, match="is damaged") as caught:
            read(tmp_path / name)
        assert str(other) in str(caught.value)
        assert ("delete it" in str(caught.value)) == (name == "last.safetensors")


def test_workers_leave_an_interruption_to_the_process_that_the_user_sees():
    before = signal.getsignal(signal.SIGINT)
    found = list(in_parallel(signal.getsignal, [(signal.SIGINT,)] * 3, Engine("loky", 2), own_process=True))
    assert found == [signal.SIG_IGN] * 3
    assert signal.getsignal(signal.SIGINT) is before


def test_work_that_is_given_up_is_one_sentence():
    script = (
        "import sys, joblib\nfrom dataclasses import dataclass\nfrom sleepfm_fast.cli import command\n"
        "from sleepfm_fast.errors import SleepfmError\n@dataclass(frozen=True)\nclass Config:\n    'Nothing.'\n"
        "def main(config):\n"
        "    calls = (joblib.delayed(__import__('time').sleep)(n) for n in (0, 0.3, 0.3, 0.3))\n"
        "    for _ in joblib.Parallel(2, prefer='threads', return_as='generator')(calls):\n"
        "        raise SleepfmError('the disk is full.')\n"
        "sys.exit(command.run(Config, main))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["error: the disk is full."]


INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"


@pytest.mark.parametrize("imported", ["sleepfm_fast", "tyro", "numpy"])
@pytest.mark.parametrize("started", [["-m", "sleepfm_fast.probe"], ["-m", "sleepfm_fast", "probe"], ["sleepfm-fast"]])
def test_an_interruption_while_a_command_is_imported_is_a_sentence(tmp_path, imported, started):
    if imported == "sleepfm_fast":
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util\ndef find_spec(name, package=None, found=importlib.util.find_spec):\n"
            f"    if name == 'sleepfm_fast._C':\n        exec({INTERRUPTED!r})\n    return found(name, package)\n"
            "importlib.util.find_spec = find_spec\n"
        )
    else:
        (tmp_path / f"{imported}.py").write_text(INTERRUPTED)
    if started == ["sleepfm-fast"]:
        script = tmp_path / "sleepfm-fast"  # as pip writes it
        script.write_text("import sys\nfrom sleepfm_fast.__main__ import main\nsys.exit(main())\n")
        started = [str(script), "probe"]
    done = subprocess.run(
        [sys.executable, *started, "EMBEDDINGS", "--task", "stage"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        # Where the tests run behind a shell, Ctrl-C is ignored, and what they start inherits it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted before anything was done\n"


ANSWER = "import signal, sleepfm_fast.cli.interruption as own; print(signal.getsignal(signal.SIGINT) is own._end)\n"


@pytest.mark.parametrize(
    ("file", "text", "started"),
    [
        ("tool.py", ANSWER, ["tool.py"]),
        ("tool/__init__.py", ANSWER, ["-m", "tool"]),  # the program's name is -m here as well
        # A shell starts what runs behind it, with & or nohup, so that Ctrl-C does not reach it.
        ("sitecustomize.py", f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{ANSWER}", ["-c", ""]),
    ],
    ids=["library", "library of a program started with -m", "ignored"],
)
def test_a_program_that_imports_the_package_answers_ctrl_c_itself(tmp_path, file, text, started):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    (tmp_path / file).with_name("__main__.py").write_text("")
    done = subprocess.run(
        [sys.executable, *started],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_a_command_that_has_begun_is_interrupted_as_python_does(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, interruption._end)
        monkeypatch.setattr(sys, "argv", ["probe", "--help"])
        with contextlib.suppress(SystemExit):
            assert probe.cli(["--help"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


STOPPED = """
import os, pathlib, signal, sys, time
from dataclasses import dataclass
from sleepfm_fast.cli import command
from sleepfm_fast.storage.claims import claim_to_write
@dataclass(frozen=True)
class Config:
    "Nothing."
def main(config):
    claim = claim_to_write(pathlib.Path(sys.argv[2]))
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(3)
    finally:
        claim.release()
    return {}
status = command.run(Config, main, [])
assert all(signal.getsignal(n) in (signal.SIG_DFL, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGHUP))
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("name", "settings", "status"),
    [
        ("SIGTERM", {}, 143),
        ("SIGHUP", {}, 129),
        ("SIGXCPU", {}, 152),
        ("SIGUSR1", {}, 138),  # with which SLURM announces the end of a job (--signal=USR1@60)
        ("SIGUSR2", {}, 140),
        ("SIGTERM", {"TORCHELASTIC_RUN_ID": "none"}, -15),  # torchrun ends all processes when one has failed
        ("SIGTERM", {"WORLD_SIZE": "2"}, -15),  # as do other launchers
        ("SIGHUP", {"ignored": "1"}, 0),  # as by nohup
    ],
)
def test_a_batch_system_stops_a_command_as_ctrl_c_does(tmp_path, name, settings, status):
    def prepare():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN if "ignored" in settings else signal.SIG_DFL)

    kept = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, name, tmp_path / "out"],
        cwd=ROOT, env={**kept, **settings}, capture_output=True, text=True, check=False, preexec_fn=prepare,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    if status > 0:
        assert done.stderr.splitlines()[-1] == (
            f"stopped by {name}; nothing was kept; the same command starts from the beginning"
        )
        assert done.stdout == ""
    assert list(tmp_path.iterdir()) == ([tmp_path / ".out.claim"] if status < 0 else [])


def test_compiled_functions_work_where_no_folder_can_be_written():
    names = {}
    exec("def following(x):\n    return x + 1\n", names)  # has no file, beside which numba could write
    assert compiled()(names["following"])(3) == 4


def test_compiled_functions_take_no_folder_of_the_working_directory_for_a_home(monkeypatch):
    """Numba keeps its code in `./~/.cache`, and loads it from there, for a user whom the system does not know."""

    def following(x):
        return x + 1

    assert may_cache(following)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", str)
    assert may_cache(following)  # beside the source
    monkeypatch.setattr("os.access", lambda *_: False)
    assert not may_cache(following)
    function = compiled()(following)
    assert function(3) == 4
    assert not function._cache.cache_path
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert may_cache(following)


def test_compiled_functions_work_where_the_quota_is_used_up(tmp_path, monkeypatch):
    (tmp_path / "kernel_of_test.py").write_text(
        "from sleepfm_fast.execution.compiled import compiled\n\n\n@compiled()\ndef following(x):\n    return x + 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    calls = []

    def full(*_):
        calls.append(1)
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert importlib.import_module("kernel_of_test").following(3) == 4
    assert calls


def test_processes_that_compile_for_different_types_at_once_do_not_mix_up_the_code(tmp_path, monkeypatch):
    """Both read the list of files while it is empty; the second one is done before the first one writes its code."""
    file = tmp_path / "kernel_of_test.py"
    file.write_text(
        "from sleepfm_fast.execution.compiled import compiled\n\n\n@compiled()\ndef following(x):\n    return x + 1\n"
    )

    def imported_anew():
        spec = importlib.util.spec_from_file_location("kernel_of_test", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.following

    first, second = imported_anew(), imported_anew()
    save, saved = IndexDataCacheFile._save_data, []

    def save_after_the_other(*arguments):
        saved.append(1)
        if len(saved) == 1:
            assert second(1.5) == 2.5
        save(*arguments)

    with monkeypatch.context() as at_once:
        at_once.setattr(IndexDataCacheFile, "_load_index", lambda _: {})
        at_once.setattr(IndexDataCacheFile, "_save_data", save_after_the_other)
        assert first(3) == 4
    assert len(saved) == 2
    third = imported_anew()
    assert third(1.5) == 2.5
    assert sum(third.stats.cache_hits.values()) == 1
    assert third(3) == 4


def test_code_of_earlier_sources_is_removed(tmp_path):
    """Every upgrade would leave a file for each function and type, as new ones are named by chance."""
    file = tmp_path / "kernel_of_test.py"
    source = (
        "from sleepfm_fast.execution.compiled import compiled\n\n\n@compiled()\ndef following(x):\n    return x + 1\n"
    )
    source += "\n\n@compiled()\ndef following_again(x):\n    return x + 2\n"

    def imported_anew():
        spec = importlib.util.spec_from_file_location("kernel_of_test", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    for text in (source, source.replace("x + 1", "1 + x * 1"), "\n" + source.replace("x + 1", "x + 1.0")):
        file.write_text(text)
        first = imported_anew()
        assert (first.following(3), first.following(1.5), first.following_again(3)) == (4, 2.5, 5)
        again = imported_anew()
        assert (again.following(3), again.following(1.5), again.following_again(3)) == (4, 2.5, 5)
        assert sum(again.following.stats.cache_hits.values()) == 2
        kept = sorted(path.suffix for path in (tmp_path / "__pycache__").iterdir() if path.suffix != ".pyc")
        assert kept == [".nbc"] * 3 + [".nbi"] * 2


def test_a_killed_job_goes_on_on_another_node(tmp_path, monkeypatch, capsys):
    file = foreign_claim(tmp_path / ".run.claim")
    monkeypatch.setattr(claims, "STALE_S", 1.9)
    claim = claim_to_write(tmp_path / "run")
    assert "checking whether process 1 on elsewhere is still writing" in capsys.readouterr().err
    assert claim.holds()
    claim.release()
    assert not file.exists()


def test_a_living_job_on_another_node_is_not_disturbed(tmp_path, monkeypatch):
    file = foreign_claim(tmp_path / ".run.claim")
    with renewed_elsewhere(file), pytest.raises(SleepfmError, match="process 1 on elsewhere"):
        claim_to_write(tmp_path / "run")
    assert file.exists()


KILLED_AT_THE_CLOCK = """
import os, signal, sys
from pathlib import Path
from sleepfm_fast.storage import claims

def kill(event, given):
    if event == "os.remove" and ".clock" in str(given[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
claims.claim_to_write(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("aside", [False, True], ids=["the claim", "one that was put aside"])
def test_what_a_kill_leaves_of_looking_at_a_foreign_claim_goes_with_the_next_claim(tmp_path, monkeypatch, aside):
    file = foreign_claim(tmp_path / ("..run.claim.1-2.tmp" if aside else ".run.claim"))
    done = subprocess.run([sys.executable, "-c", KILLED_AT_THE_CLOCK, str(tmp_path / "run")], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    (tmp_path / ".run.claim").unlink(missing_ok=True)  # that of the process killed
    (left,) = set(tmp_path.iterdir()) - {file}
    assert left.name.endswith(".clock.tmp")
    os.utime(file, (0, 0)) if aside else file.unlink(missing_ok=True)
    claim_to_write(tmp_path / "run").release()
    assert not list(tmp_path.iterdir())
