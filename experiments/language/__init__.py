"""The chain from text to SAEs that the TinyStories figures share."""
