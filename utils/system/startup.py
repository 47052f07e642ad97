"""Import this first in a script: what is different while it still imports its libraries.

Ctrl-C ends it at once, without a traceback; where Ctrl-C is ignored, it stays so. And Python looks for garbage rarely:
imports make a million objects that stay, and to search these again and again takes a second.
`utils.system.cli.run_script` gives Python's own ways back.
"""

import gc
import signal

GC_THRESHOLDS = gc.get_threshold()

gc.set_threshold(20_000)
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
