"""Layouts of public datasets, read as their authors distribute them."""
