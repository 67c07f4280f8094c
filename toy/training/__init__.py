"""The trainer: a run is a pure function of a key, a data source and hyperparameters."""
