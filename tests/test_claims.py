"""Claims on files and folders: names that lead to one place, claims put aside by mistake, what is left behind."""

import os
from dataclasses import replace

import pytest
from foreign_claims import foreign_claim

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage import claims
from sleepfm_fast.storage.claims import Claim, claim_to_write, discard, holder_of


def test_two_names_of_one_folder_are_one_claim(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "out")
    held = claim_to_write(tmp_path / "disk" / "out")
    for name in ("link/out", "run", "disk/../run"):
        with pytest.raises(SleepfmError, match="another process"):
            claim_to_write(tmp_path / name)
    held.release()
    claim_to_write(tmp_path / "link" / "out").release()


def test_a_living_process_of_this_machine_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "beats", lambda path: pytest.fail("looked at for minutes"))
    held = claim_to_write(tmp_path / "out")
    with pytest.raises(SleepfmError, match=f"another process .*{os.getpid()}.* is writing"):
        claim_to_write(tmp_path / "out")
    assert "checking" not in capsys.readouterr().err
    held.release()


def test_a_release_ends_the_thread_and_leaves_nothing(tmp_path):
    claim = Claim(tmp_path / "claim")
    claim.release()
    assert not claim.thread.is_alive()
    assert not [*tmp_path.iterdir()]


def test_a_void_claim_is_removed_and_one_that_has_taken_its_place_is_given_back(tmp_path):
    path = tmp_path / "claim"
    foreign_claim(path)
    void = holder_of(path)
    discard(path, void)
    assert not [*tmp_path.iterdir()]
    discard(path, void)  # another process has done it already
    foreign_claim(path)
    discard(path, replace(void, pid=void.pid + 1))
    assert holder_of(path) == void
    assert [*tmp_path.iterdir()] == [path]


def test_only_what_was_left_of_the_same_name_goes_with_a_claim(tmp_path):
    others = [tmp_path / name for name in (".a[12].1-2.new.tmp", ".a1.1-2.new.tmp")]
    for other in others:
        other.touch()
    Claim(tmp_path / "a[12]").release()
    assert [*tmp_path.iterdir()] == others[1:]


def test_a_name_that_no_record_can_hold_is_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"n\xff")
    with pytest.raises(SleepfmError, match="is not valid UTF-8"):
        claim_to_write(path)
    assert not [*tmp_path.iterdir()]
