"""Import this first in a script: Ctrl-C while it still imports its libraries ends it at once, without a traceback.

`utils.system.cli.run_script` gives Python's own handler back. Where Ctrl-C is ignored, it stays so.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
