"""Figures of a page."""
