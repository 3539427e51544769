"""Simulated sleepers: one hidden physiology, and the signals that a polysomnograph makes of it."""
