"""The single version string; works from a zip without distribution metadata."""

__version__ = "0.1.0"
