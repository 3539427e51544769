"""What identifies a run: its configuration, its origin, its split of the subjects; its checkpoints.

:mod:`sleepfm_fast.rundir` is the door.
"""
