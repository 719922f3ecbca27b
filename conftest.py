"""Read by pytest before anything else, whatever it is asked to run.

It stands at the root, and not in tests/, so that no test and no example, however it is selected, runs in the
real network: from here on the process is in a network namespace of its own, or knows that it must keep to
`lo`.
"""

import signal

import netns

# A run in the background of a shell, or below nohup, is started with these ignored, and what is ignored is so in the
# programs that tests start too: Ctrl-C and hang-ups would not reach them.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

netns.enter()
