"""The run directory: what a run leaves on disk, where, and how it is read again. Both the learner and evaluation use it."""
