"""Classifiers, figures with their intervals, and ranks.

:mod:`sleepfm_fast.embeddings` and :mod:`sleepfm_fast.results` are the doors.
"""
