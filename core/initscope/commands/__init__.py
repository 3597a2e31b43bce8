"""What each command of ``initscope COMMAND`` does: one function a command, which prints and gives back its
JSON.
"""
