"""How an SAE is judged: against the tree that it was trained on, or on activations alone."""
