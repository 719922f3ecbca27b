"""One epoll set, the objects it drives, and their timers.

Facts about epoll(7) that decide the shape of this file:

* epoll reports descriptor *numbers*. A number may have been closed and given to somebody else between the
  report and its handling, within one batch even. So a batch is resolved to registrations before any handler
  runs, and each handler runs only if the table still holds that very registration.
* Errors and hang-ups are reported unasked, in any mixture with the rest. They count as "readable and writable":
  the handler meets the error in its own system call, where it has a name and a place.
* A closed descriptor leaves the set by itself, unless a copy of it (dup, fork) lives on: then it goes on
  reporting for ever and cannot be removed by any call. The only cure is a new set, so we build one. What
  the outside knows as our descriptor is therefore a set of its own, whose one member is the set in use.
* The timeout of epoll_wait counts milliseconds, rounded up. Timers that must be finer wait on a timerfd in the
  same set. That also makes the descriptor of the set readable when a timer is due, which is all that another
  event loop needs to drive a poller from outside.
* A child made by fork shares the set: what it removes there is gone for the parent. So the child drops its
  copies at once, and starts with an empty poller.

Interest is level-triggered. An object reads a bounded amount in a turn, and objects that have more have further turns,
in rounds with the others, within the budget of one poll. So a flood on one descriptor leaves time for the others, and a
program that polls now and then reads all that is waiting. That costs one epoll_wait for each round.
"""

from __future__ import annotations

from .dispatcher import Dispatcher
from .polling import Poller
from .polling import _defaultPoller as _defaultPoller
from .registration import HasFileno, report
from .timers import Repeater, Timer, load_clock

__all__ = ["Dispatcher", "HasFileno", "Poller", "Repeater", "Timer", "load_clock", "report"]
