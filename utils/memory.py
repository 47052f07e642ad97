"""What the C library does with memory that a step has freed: kept for the next step, which needs as much."""

import ctypes

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
GIB = 2**30


def keep_freed_memory() -> None:
    """Have this process keep what it frees instead of giving it back to the kernel. Only with glibc, else nothing.

    By default every tensor of more than 32 MB, such as the gradient of the word embeddings, and some smaller ones are
    mapped anew in every step, and the kernel fills their pages with zeros one by one: a tenth of a student's step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none that can be asked so
        return
    mallopt(M_MMAP_THRESHOLD, GIB)
    mallopt(M_TRIM_THRESHOLD, GIB)
