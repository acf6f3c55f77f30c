"""The version of this package, apart from the public face, so that rooms can name it without importing upwards."""

__version__ = "0.1.0"
