"""The language models of TinyStories: what they are, and how their weights are read and written."""
