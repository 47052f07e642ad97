"""The error that a user's mistake raises, and what libraries say, in one line."""

import errno

# One class: those that a model folder's own predictor raises are caught like all others.
from utils.predictor.errors import UserError, first_line

__all__ = ["FULL_DISK", "UserError", "first_line"]

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
