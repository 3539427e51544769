"""The clip store on disk, and the way from it to a batch.

:mod:`sleepfm_fast.clips` and :mod:`sleepfm_fast.batches` are the doors.
"""
