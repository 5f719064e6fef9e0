"""Whole pages: of a run, of a study, of methods side by side."""
