"""Measures of an SAE: against the tree that it was trained on, or on activations alone."""
