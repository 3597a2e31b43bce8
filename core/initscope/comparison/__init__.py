"""Did the change help: runs compared, sweeps over seeds, the study of networks, and their statistics. No
torch.
"""
