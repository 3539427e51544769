"""The design of the filters; :mod:`sleepfm_fast.filters` is the door."""
