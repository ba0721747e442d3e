"""The stages of a run in order, their artifacts, and the command line."""
