"""One run's configuration, declared once: names to choose from, bounds, presets, files of people's own. No
torch.
"""

from initscope.config.run_config import (
    OPTIONS,
    PRESETS,
    RunConfig,
    changed_fields,
    preset,
    quick,
    title_of,
    tutorial_32,
    tutorial_224,
)

__all__ = [
    "OPTIONS",
    "PRESETS",
    "RunConfig",
    "changed_fields",
    "preset",
    "quick",
    "title_of",
    "tutorial_32",
    "tutorial_224",
]
