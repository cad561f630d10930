"""The command line: one file a command."""

# In the order in which the help lists them.
COMMANDS = ("prune", "score", "inspect", "explain", "bench", "export", "report", "doctor")
