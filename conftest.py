"""Read by pytest before anything else, whatever it is asked to run.

It stands at the root, and not in tests/, so that no test and no example, however it is selected, runs in the
real network: from here on the process is in a network namespace of its own, or knows that it must keep to
`lo`.
"""

import netns

netns.enter()
