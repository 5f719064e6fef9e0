"""The version of this package; everything that needs it imports it from here."""

__version__ = "0.2.0.dev0"
