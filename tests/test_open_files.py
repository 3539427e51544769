"""Files that are held open: which are mapped, how many there may be, which is closed first."""

import os
import sys
import threading
import time

import numpy as np
import pytest

from sleepfm_fast.storage import open_files
from sleepfm_fast.storage.open_files import (
    Descriptor,
    Recent,
    RecentFiles,
    fits_in_memory,
    map_file,
    opened_files,
    opened_maps,
)


def test_files_are_mapped_where_they_take_at_most_half_of_the_memory(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert fits_in_memory(4096 * 500)
    assert not fits_in_memory(4096 * 500 + 1)


@pytest.mark.parametrize("refusal", [OSError, ValueError])
def test_files_are_not_mapped_where_the_memory_is_unknown(monkeypatch, refusal):
    def sysconf(name):
        raise refusal(name)

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert not fits_in_memory(1)


def test_an_empty_file_is_an_empty_array_and_another_its_bytes_read_only(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "full").write_bytes(b"\x01\xff")
    empty, full = map_file(tmp_path / "empty"), map_file(tmp_path / "full")
    assert (empty.dtype, empty.shape) == (np.uint8, (0,))
    assert full.tolist() == [1, 255]
    assert not full.flags.writeable


def test_a_descriptor_is_closed_with_its_last_reference_and_no_child_inherits_it(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    descriptor = Descriptor(tmp_path / "file")
    number = descriptor.number
    assert not os.get_inheritable(number)
    assert os.pread(number, 2, 0) == b"x"
    held = opened_files([descriptor])
    del descriptor
    assert os.pread(number, 2, 0) == b"x"
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_file_that_is_not_there_leaves_nothing_to_close(tmp_path):
    with pytest.raises(FileNotFoundError):
        Descriptor(tmp_path / "none")


def test_what_is_mapped_has_an_address_and_no_descriptor_and_what_is_read_the_reverse(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    mapped = opened_maps([map_file(tmp_path / "file")] * 2)
    assert mapped.addresses.tolist() == [mapped.maps[0].ctypes.data] * 2
    assert mapped.descriptors.tolist() == [-1, -1]
    read = opened_files([Descriptor(tmp_path / "file")])
    assert read.addresses.tolist() == [0]
    assert read.descriptors.tolist() == [read.files[0].number]


def test_the_item_used_longest_ago_is_dropped_first():
    made = []

    def make(key):
        made.append(key)
        return str(key)

    recent = Recent(2)
    assert [recent.get(key, make) for key in (1, 2, 1, 3, 1, 2)] == ["1", "2", "1", "3", "1", "2"]
    assert made == [1, 2, 3, 2]  # 3 takes the place of 2, not of 1, which was used after it
    assert len(recent) == 2


def test_at_least_one_item_is_kept():
    recent = Recent(0)
    assert recent.get(7, str) == "7"
    assert len(recent) == 1


def test_files_of_several_stores_stay_together_within_what_may_be_open(monkeypatch):
    monkeypatch.setattr(RecentFiles, "everywhere", type(RecentFiles.everywhere)())
    monkeypatch.setattr(open_files, "open_limit", lambda: 4)
    stores = [RecentFiles(4) for _ in range(3)]
    for key in range(4):
        stores[0].get(key, str)
    for key in range(3):
        stores[1].get(key, str)
        assert sum(map(len, stores)) == 4
    assert [len(store) for store in stores] == [1, 3, 0]
    assert stores[0].get(3, lambda _: "made again") == "3", "the one used last is kept"
    stores[2].get(7, str)  # takes the place of the file that was used longest ago, of whichever store
    assert [len(store) for store in stores] == [1, 2, 1]
    assert stores[1].get(1, lambda _: "made again") == "1"
    for key in range(10, 20):
        stores[2].get(key, str)
    assert [len(store) for store in stores] == [0, 0, 4]
    del stores[2]
    for key in range(4):
        stores[1].get(key, str)
    assert [len(store) for store in stores] == [0, 4], "a store that is gone leaves its place to others"


def test_a_store_may_be_opened_while_another_thread_reads_one():
    here = [RecentFiles(4) for _ in range(50)]
    end, errors = time.monotonic() + 0.5, []

    def opened():
        while time.monotonic() < end:
            [RecentFiles(4) for _ in range(20)]

    def read():
        try:
            while time.monotonic() < end:
                here[0].make_room()
        except RuntimeError as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run) for run in (opened, read, read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []
