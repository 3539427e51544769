"""The channels' names, and the lists of channels that a model takes; :mod:`sleepfm_fast.channels` is the door."""
