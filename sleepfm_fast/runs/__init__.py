"""What identifies a run: its configuration, its origin, its split of the subjects.

:mod:`sleepfm_fast.rundir` is the door.
"""
