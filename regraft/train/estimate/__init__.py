"""Estimates before a run: memory and time by recipe, model and devices."""
