"""Formats of other libraries: their SAEs (`saes`), and the synthetic models of SAELens."""
