"""Language models, of TinyStories and others such as SmolLM2, and how their weights are read and written."""
