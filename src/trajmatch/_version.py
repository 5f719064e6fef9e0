"""The version of this release; everything that needs it imports it from here."""

__version__ = "0.1.0"
