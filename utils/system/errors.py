"""The error that a user's mistake raises, and what libraries say, in one line."""

import errno

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """A mistake the user can mend: one sentence naming the file, line or flag, and the mend.

    A ValueError, so that a program that uses `utils.runtime.Predictor` need not know this class.
    """


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]
