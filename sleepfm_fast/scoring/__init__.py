"""Scorings of every source to stages and events; :mod:`sleepfm_fast.annotations` is the door."""
