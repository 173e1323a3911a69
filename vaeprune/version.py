"""The version of this package; what writes it into files need not import the whole package for it."""

__version__ = "0.1.0"
