"""The command line: one file a command."""

# In the order in which the help lists them.
COMMANDS = (
    "import",
    "prune",
    "finetune",
    "transfer",
    "score",
    "inspect",
    "explain",
    "bench",
    "export",
    "run",
    "report",
    "doctor",
)
