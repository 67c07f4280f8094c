"""The formats of other libraries: SAELens' SAE folders and its synthetic models."""
