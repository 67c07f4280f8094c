"""Formats of other libraries: the SAE folders and synthetic models of SAELens."""
