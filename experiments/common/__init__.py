"""Code that the experiments share: the command line, options, the study of trained SAEs, and pieces of figures."""
