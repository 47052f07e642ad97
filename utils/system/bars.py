"""Progress bars."""

import logging

from tqdm import tqdm


def progress_bar(*arguments, shown: bool = True, **options) -> tqdm:
    """tqdm's bar, on standard error where that is a terminal, and not with --quiet."""
    shown = shown and logging.getLogger().isEnabledFor(logging.INFO)
    return tqdm(*arguments, disable=None if shown else True, **options)
