"""What each command of ``python -m core COMMAND`` does: one function a command, which prints and gives back its JSON."""
