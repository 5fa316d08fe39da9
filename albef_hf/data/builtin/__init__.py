"""Corpora that are generated or read from installed packages."""
