"""InitScope's core: models, initializations, training, recording, storage and diagnosis. No screen.

Importing ``core`` itself imports nothing heavy; torch is loaded only by the modules that compute with it
(``models``, ``inits``, ``data``, ``recorder``, ``training``, ``probe``).
"""

__version__ = "0.1.0"
