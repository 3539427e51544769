"""EDF and WFDB, the files that recordings come in.

:mod:`sleepfm_fast.edf` and :mod:`sleepfm_fast.recordings` are the doors.
"""
