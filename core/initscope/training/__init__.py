"""Training one run: the loop, what it computes on, its checkpoint and log, and the processes it takes.
Importing this costs no torch.
"""
