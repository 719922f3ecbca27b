"""`Poller`: one epoll set, the objects it drives, and the loop.

The table of registrations and the loop stand in one class. A handler may register, modify and unregister any object,
itself included, while the loop is in the middle of its round; so each change of the table is a change of what the loop
does next, and both work on the same fields. What is known of one object is in `registration`, and which calls are due
in `timers`; neither knows epoll.
"""

from __future__ import annotations

import errno
import os
import select
import time
import weakref
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

from multicast.errors import ArgumentError, RegistrationError, advise, check_amount

from .registration import READ, READABLE, WRITE, HasFileno, Member, Registration, interest_of, number_of, report
from .timers import Alarm, Repeater, Schedule, Timer

_USUAL = select.EPOLLIN  # the event that most often comes alone
_FAULT = select.EPOLLERR | select.EPOLLHUP
# Longer waits are cut to this many seconds, for the sake of the system calls; nobody notices the turn in between.
_FAR = 1_000_000
# Every so many polls, look whether what is ready is still open.
_AUDIT = 256

_Helper = TypeVar("_Helper")

# Which poller holds which object, by the object's identity: objects need neither be hashable nor allow weak
# references. A registration keeps its object alive, so an identity cannot be reused while it stands here.
_owners: dict[int, weakref.ref[Poller]] = {}
_pollers: weakref.WeakSet[Poller] = weakref.WeakSet()


class Poller:
    """A set of objects and the loop that calls them when their descriptors are ready.

    It wraps `select.epoll`. The set is opened when it is first needed, so making a poller costs no descriptor. ``len``,
    ``in`` and iteration are about the registered objects. `clock` gives the seconds that timers count; another than the
    default is for tests.

    A poller is driven by one thread at a time. `stop`, `call_soon` and `close` may be called from any thread and
    from signal handlers.
    """

    #: How long one `poll` goes on with objects that say that more is waiting, in seconds. Each object that is ready
    #: gets one turn in any case; with 0 it gets no second one.
    budget: float = 0.002

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoll: select.epoll | None = None
        self._face: select.epoll | None = None  # what fileno() gives; its one member is the set
        self._wakefd = -1
        self._alarm: Alarm | None = None
        self._helpers: dict[int, HasFileno] = {}
        self._table: dict[int, Registration] = {}
        self._revisit: dict[Registration, None] = {}
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers = Schedule()
        self._late: dict[Registration, None] = {}  # whom an error kept from their turn, in order
        self._stale = False  # the set is to be made anew
        self._odd: set[int] = set()  # numbers that were closed before they were removed from the set
        self._turn = 0
        self._sleeping = False
        self._stopped = False
        self._stops = 0  # a count, so that a stop is not undone for loops that run already
        self._expected: int | None = None  # the count the loop around the next poll() began with
        self._driver: int | None = None  # the thread that is in poll() or loop()
        self._closing = False
        self._closing_lock = allocate_lock()
        _pollers.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._table)} registered, {'polling' if self.polling else 'stopped'}>"

    def __len__(self) -> int:
        return len(self._table)

    def __bool__(self) -> bool:
        # A poller is a thing, not a container that is false when empty: `poller or default` must not surprise.
        return True

    def __contains__(self, fd: HasFileno) -> bool:
        return self._find(fd) is not None

    def __iter__(self) -> Iterator[Any]:
        return iter([registration.target for registration in self._table.values()])

    # -- the table -------------------------------------------------------------------------------------------------

    def register(self, fd: HasFileno, flags: int = 0) -> None:
        """Watch `fd` and call its `handle_read` and `handle_write` when it is ready.

        `fd` is an object with `fileno()` and at least one of `handle_read()`, called for EPOLLIN and EPOLLPRI, and
        `handle_write()`, called for EPOLLOUT. With `flags` 0 the interest follows from the methods it has; otherwise
        `flags` are the epoll events to watch for. An optional `handle_error(exc)` receives what a handler raised.

        The poller keeps the object alive until it is unregistered. An object belongs to one poller: registering it
        with another moves it there, registering it again sets its flags. Raises `RegistrationError` for an object
        that cannot be driven and `OSError` for a descriptor that cannot be watched; nothing is changed then.
        """
        number = number_of(fd)
        interest = interest_of(fd, flags)
        epoll = self._epoll or self._open()
        present = self._table.get(number)
        try:
            if present is not None and present.target is fd:
                before, present.flags = present.flags, interest
                try:
                    self._watch(present)
                except OSError:
                    present.flags = before
                    raise
                self._stopped = False
                return
            # Without events for now: another thread may be polling, and could meet them before the table is ready.
            epoll.register(number, select.EPOLLONESHOT)
        except OSError as error:
            other = "" if present is None else repr(present.target)
            raise advise(error, "register", other=other) from None
        owner = _owners.get(id(fd))
        held_by = owner() if owner is not None else None
        if held_by is not None:
            held_by.unregister(fd)
        if present is not None:  # closed behind our back; its number came round again
            self._forget(present)
            self._odd.add(number)
        if number in self._odd:  # a copy of what had the number before may live on
            self._stale = True
        registration = Registration(number, fd, interest)
        self._table[number] = registration
        _owners[id(fd)] = weakref.ref(self)
        self._stopped = False
        try:
            if isinstance(fd, Member):
                fd.poller = self
                fd._attached()
                if getattr(fd, "pending", False):
                    self._revisit[registration] = None
                    self._wake()
            self._watch(registration)
        except BaseException:
            self.unregister(fd)
            raise

    def _watch(self, registration: Registration) -> None:
        """Have the set report what a row of the table asks for."""
        epoll = self._epoll or self._open()
        try:
            epoll.modify(registration.fd, registration.flags)
        except FileNotFoundError:
            # Closed and opened afresh, and the number happens to be the same; or the set was made anew this moment.
            epoll.register(registration.fd, registration.flags)
            self._stale = True

    def add_helper(self, fd: HasFileno) -> None:
        """Call `fd.handle_read()` when `fd` is readable, as for one registered, but do not count it.

        For objects that serve registered ones: `polling` and `len` do not see them, so they keep no loop running.
        """
        number = number_of(fd)
        epoll = self._epoll or self._open()
        self._helpers[number] = fd  # first, for another thread may be polling
        epoll.register(number, select.EPOLLIN)

    def helper(self, kind: type[_Helper]) -> _Helper | None:
        """Return the helper of this kind, or None where there is none yet."""
        return next((helper for helper in self._helpers.values() if isinstance(helper, kind)), None)

    def remove_helper(self, fd: HasFileno) -> None:
        """Undo `add_helper`, before the descriptor is closed. Harmless when it is not there."""
        number = fd.fileno()
        if self._helpers.pop(number, None) is not None and self._epoll is not None:
            self._epoll.unregister(number)

    def modify(self, fd: HasFileno, flags: int) -> None:
        """Change what a registered object is watched for; `flags` as in `register`.

        To watch for nothing but errors for a while, pass `select.EPOLLERR`, which is always on. Raises
        `RegistrationError` when the object is not registered here.
        """
        registration = self._find(fd)
        if registration is None:
            raise RegistrationError(f"{fd!r} is not registered with this poller; register it first")
        if flags and flags == registration.flags:
            return
        interest = interest_of(fd, flags)
        if interest != registration.flags and self._epoll is not None:
            before, registration.flags = registration.flags, 0  # not known while a signal handler may raise in between
            try:
                self._epoll.modify(registration.fd, interest)
            except OSError as error:
                registration.flags = before
                raise advise(error, "register") from None
            registration.flags = interest

    def unregister(self, fd: HasFileno | int) -> None:
        """Stop watching `fd`; it stays open. Harmless when it is not registered or closed already."""
        registration = self._find(fd)
        if registration is None:
            return
        self._forget(registration)
        if self._epoll is not None:
            try:
                self._epoll.unregister(registration.fd)
            except (OSError, ValueError):
                # Closed before: the kernel has dropped it, or a copy keeps it and poll() will notice.
                self._odd.add(registration.fd)

    def revisit(self, fd: HasFileno) -> None:
        """Call `fd.handle_read()` in the next `poll`, whether or not the kernel has news of it.

        For objects that have read more than they have dealt with. Harmless when it is not registered here.
        """
        registration = self._find(fd)
        if registration is not None:
            self._revisit[registration] = None
            if self._face is not None:
                self._wake()

    def _find(self, fd: HasFileno | int) -> Registration | None:
        if isinstance(fd, int):
            return self._table.get(fd)
        owner = _owners.get(id(fd))
        if owner is None or owner() is not self:
            return None
        try:
            registration = self._table.get(fd.fileno())
        except (OSError, ValueError):
            registration = None
        if registration is not None and registration.target is fd:
            return registration
        # Its descriptor is closed or changed: only the object itself tells which row is its own.
        return next((row for row in self._table.values() if row.target is fd), None)

    def _forget(self, registration: Registration) -> None:
        if self._table.get(registration.fd) is registration:
            del self._table[registration.fd]
        self._revisit.pop(registration, None)
        self._late.pop(registration, None)
        _owners.pop(id(registration.target), None)
        if isinstance(registration.target, Member):
            registration.target._detached(self)

    # -- timers and calls ------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the time on the poller's clock, in seconds; only differences mean anything."""
        return self._clock()

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call `callback(*args)` from `poll` when `delay` seconds have passed; return the `Timer`, to cancel it.

        Accurate to some tens of microseconds while the poller waits in the kernel.
        """
        check_amount("delay", delay, "seconds")
        return self.call_at(self._clock() + delay, callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call `callback(*args)` when `time()` has reached `when`, in seconds; return the `Timer`."""
        if when != when:
            raise ArgumentError(f"when must be a time in seconds, not {when!r}")
        timer = Timer(when, callback, args)
        self._timers.add(timer)
        if self._face is not None or self._sleeping:
            self._arm()
        return timer

    def call_every(self, interval: float, callback: Callable[..., object], *args: Any) -> Repeater:
        """Call `callback(*args)` each `interval` seconds from now on; return the `Repeater`, to cancel it.

        The times do not drift: each is `interval` after the one before, however late that was served. Times that have
        passed altogether are left out and counted in `missed`. The repeater stays in place when the callback raises.
        """
        check_amount("interval", interval, "seconds", zero=False)
        return Repeater(self, interval, callback, args)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback(*args)` in the next `poll`. May be called from any thread; a waiting poll wakes."""
        self._calls.append((callback, args))
        if self._sleeping or self._face is not None:
            self._wake()

    def _arm(self) -> None:
        """Have the alarm ring at the next deadline."""
        deadline = self._timers.next_deadline()
        if deadline is not None:
            self._set_alarm(deadline, deadline - self._clock())

    def _set_alarm(self, deadline: float, left: float) -> bool:
        """Have the alarm ring at `deadline`, in `left` seconds; False when there is no descriptor for it.

        That is when programs wait for better times, so it must not end them: the kernel's own timeout will do.
        """
        alarm = self._alarm
        if alarm is None:
            try:
                alarm = Alarm()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                return False
            (self._epoll or self._open()).register(alarm.fd, alarm.EVENTS)
            self._alarm = alarm
        # One that has passed may have rung in a poll that was interrupted before it knew.
        if alarm.deadline is None or not deadline - left < alarm.deadline <= deadline:
            alarm.deadline = deadline
            alarm.set(left if left < _FAR else _FAR)
        return True

    # -- polling ---------------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None = 0) -> None:
        """Wait for events, then call the handlers of what is ready.

        `timeout` is in seconds: 0 looks and returns, None waits until something happens. Between these it is
        rounded up to whole milliseconds.

        Each ready object gets a turn, which is a bounded amount of work. A listener or stream that has more waiting
        gets further turns, in rounds with the others, until none has more or `budget` seconds have passed. Each round
        also runs the timers that are due and serves what became ready meanwhile. Objects that are not derived from
        `Dispatcher` are called once in each `poll`.

        What a handler raises is given to the object's `handle_error`, or leaves `poll` if it has none. Nothing is lost
        by that, nor by what a signal handler raises at any line: the next `poll` goes on where this one ended.
        """
        if timeout and not 0 < timeout <= _FAR:
            if not timeout > _FAR:
                raise ArgumentError(f"timeout must be None or 0 or more seconds, not {timeout!r}")
            timeout = _FAR
        stops, self._expected = self._expected, None
        outer, self._driver = self._driver, get_ident()
        try:
            ready = self._wait(timeout, stops)
            if ready is None:  # closed or stopped meanwhile
                return
            try:
                count = self._stops
                if self._serve(ready):
                    self._go_on(ready, count)
            except BaseException:
                for registration in [*self._table.values()]:
                    if registration.ours:
                        registration.target._resume()
                if self._stale:
                    try:
                        self._rebuild()
                    except OSError:  # no descriptor left, which the next poll reports
                        pass
                raise
            finally:
                if self._face is not None:
                    self._arm()
                    if self._calls or self._revisit:
                        self._wake()
            if self._stale:
                self._rebuild()
        finally:
            self._driver = outer
            if outer is None and self._closing:
                self._close()

    def _serve(self, ready: list[tuple[Registration, int]]) -> bool:
        """Run what is due and give each object of `ready` a turn; return whether one of ours has more."""
        more = False
        queue: Iterator[tuple[Registration, int]] = iter(ready)
        try:
            if self._late:
                queue = self._catch_up(ready)
            if self._calls or self._timers or self._revisit:
                visited = self._run_due()
                if visited:  # they had their turn
                    more = True
                    queue = (entry for entry in queue if entry[0] not in visited or entry[1] & ~READABLE)
            table = self._table
            for registration, mask in queue:
                if table.get(registration.fd) is registration:
                    if mask == _USUAL and registration.reads:  # what `_dispatch` would do, a call less
                        try:
                            if registration.target.handle_read() is True and registration.ours:
                                more = True
                        except Exception as error:
                            self._failed(registration, error)
                    elif self._dispatch(registration, mask):
                        more = True
        except BaseException:
            self._late.update((registration, None) for registration, _ in queue)
            raise
        return more

    def _go_on(self, ready: list[tuple[Registration, int]], stops: int) -> None:
        """Serve further rounds while objects of ours have more, until the budget is spent or the poller is stopped.

        `ready` is what the first round has served, `stops` the count of stops before it.
        """
        # The time is the real one: a poller whose clock stands still must not go on for ever.
        until = time.monotonic() + self.budget
        called = {registration for registration, _ in ready if not registration.ours}
        more = True
        while more and self._stops == stops and time.monotonic() < until:
            found = self._wait(0, stops)
            if found is None:
                return
            ready = [entry for entry in found if entry[0] not in called]
            called.update(registration for registration, _ in ready if not registration.ours)
            more = self._serve(ready)

    def _wait(self, timeout: float | None, stops: int | None) -> list[tuple[Registration, int]] | None:
        """Wait for events; return those of registered objects, or None when the poller is being closed.

        None too when the count of stops is another than `stops`: what wakes a waiting poll came before it waited.
        """
        if self._closing or (stops is not None and self._stops != stops):
            return None
        epoll = self._epoll or self._open()
        if timeout == 0:
            events = epoll.poll(0)
        else:
            self._sleeping = True  # from here on other threads wake us, so what they add is seen now or by a wake-up
            try:
                if self._closing or (stops is not None and self._stops != stops):
                    return None
                if self._calls or self._revisit or self._late:
                    timeout = 0
                elif self._timers and (deadline := self._timers.next_deadline()) is not None:
                    left = deadline - self._clock()
                    if left <= 0:
                        timeout = 0
                    elif not self._set_alarm(deadline, left):
                        timeout = left if timeout is None else min(timeout, left)
                events = epoll.poll(timeout)
            finally:
                self._sleeping = False
        if self._closing:
            return None
        ready: list[tuple[Registration, int]] = []
        table = self._table
        for fd, mask in events:
            registration = table.get(fd)
            if registration is not None:
                ready.append((registration, mask))
            else:
                self._internal(fd)
        self._turn = (self._turn + 1) % _AUDIT
        if not self._turn:
            # A closed descriptor that lives on in a copy is ready for ever. Most handlers meet an error then, but not
            # all of them let it be seen.
            for registration, _ in ready:
                self._check_closed(registration)
        return ready

    def _catch_up(self, ready: list[tuple[Registration, int]]) -> Iterator[tuple[Registration, int]]:
        """Serve those whom an error kept from their turn last time, before timers even; return who is left."""
        late, self._late = self._late, {}
        rank = {registration: place for place, registration in enumerate(late)}
        queue = iter(sorted(ready, key=lambda entry: rank.get(entry[0], len(rank))))
        try:
            for _ in range(sum(entry[0] in rank for entry in ready)):
                registration, mask = next(queue)
                if self._table.get(registration.fd) is registration:
                    self._dispatch(registration, mask)
        except BaseException:
            self._late.update((registration, None) for registration, _ in queue)
            raise
        return queue

    def _internal(self, fd: int) -> None:
        """Deal with an event that belongs to no registered object."""
        if fd == self._wakefd:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                pass
        elif self._alarm is not None and fd == self._alarm.fd:
            self._alarm.deadline = None  # it rang
        elif fd in self._helpers:
            self._helpers[fd].handle_read()  # type: ignore[attr-defined]
        else:
            self._stale = True

    def _run_due(self) -> set[Registration]:
        """Run the calls and timers that are due, then revisit the objects that asked for it; return these."""
        # Each entry leaves its queue in the line that runs it: when one raises, or a signal handler, the rest is still
        # there for the next poll.
        if self._calls:
            for _ in range(len(self._calls)):
                callback, args = self._calls[0]; del self._calls[0]; callback(*args)  # noqa: E702
        if self._timers:
            self._timers.run(self._clock())
        visited = set()
        for registration in list(self._revisit):
            if self._revisit.pop(registration, self) is None and self._table.get(registration.fd) is registration:
                visited.add(registration)
                self._dispatch(registration, select.EPOLLIN)
        return visited

    def _dispatch(self, registration: Registration, mask: int) -> bool:
        """Call the handlers that `mask` is for; return whether an object of ours has more waiting."""
        target = registration.target
        if mask & _FAULT:
            # An error or hang-up calls the handlers this registration watches for, or both if it watches for neither.
            mask |= registration.flags & (READ | WRITE) or READ | WRITE
        more: object = False
        try:
            if mask & READABLE and registration.reads:
                more = target.handle_read()
            if mask & WRITE and registration.writes and self._table.get(registration.fd) is registration:
                target.handle_write()
        except Exception as error:
            self._failed(registration, error)
        return more is True and registration.ours

    def _failed(self, registration: Registration, error: Exception) -> None:
        """Give what a handler raised to the object, or raise it."""
        self._check_closed(registration)
        if registration.ours:
            registration.target._resume()
        report(registration.target, error)

    def _check_closed(self, registration: Registration) -> None:
        """Drop a registration whose object was closed without being unregistered."""
        try:
            closed = registration.target.fileno() != registration.fd
        except (OSError, ValueError):
            closed = True
        if closed and self._table.get(registration.fd) is registration:
            self._forget(registration)
            self._odd.add(registration.fd)

    def _rebuild(self) -> None:
        """Make a new set: the old one reports a descriptor that is closed here and lives on in a copy."""
        old = self._epoll
        if old is None:
            return
        epoll = self._fill()
        for _ in range(2):  # once more when it is in use, for what another thread registers meanwhile
            for registration in list(self._table.values()):
                self._check_closed(registration)
                if self._table.get(registration.fd) is registration:
                    try:
                        epoll.register(registration.fd, registration.flags)
                    except FileExistsError:
                        pass
                    except OSError:
                        self._forget(registration)
            self._epoll = epoll
        if self._face is not None:
            self._face.unregister(old.fileno())
            self._face.register(epoll.fileno(), select.EPOLLIN)
        old.close()
        self._stale = False
        self._odd.clear()

    # -- looping ---------------------------------------------------------------------------------------------------

    @property
    def polling(self) -> bool:
        """True while something is registered and nobody has stopped the poller. Setting it False is `stop()`."""
        return bool(self._table) and not self._stopped

    @polling.setter
    def polling(self, value: bool) -> None:
        if value:
            self._stopped = False
        else:
            self.stop()

    def loop(self, timeout: float = 0, interval: float = 0, *, busy: bool = False) -> None:
        """Poll until `polling` is False: nothing is registered any more, or somebody called `stop`.

        With the defaults it waits in the kernel, at no cost, and calls handlers the moment something is ready. A
        `timeout` other than 0 is passed to each `poll`; `interval` is slept between polls. Both are in seconds. With
        `busy` it never waits: that is the lowest latency, and takes a whole processor core.

        Ctrl-C leaves as `KeyboardInterrupt`; what is registered stays so.
        """
        check_amount("interval", interval, "seconds")
        self._stopped = False
        stops = self._stops
        wait: float | None = 0 if busy else (timeout or None)
        while self.polling and self._stops == stops:
            self._expected = stops
            self.poll(wait)
            if interval and self.polling and self._stops == stops:
                self._sleep(interval, stops)

    def run_until(self, done: Callable[[], object]) -> None:
        """Poll until `done()` is true, or somebody called `stop`. `done` is asked before each wait in the kernel."""
        if self._epoll is None:
            self._open()  # now, for `stop` can wake only what is open
        self._stopped = False
        stops = self._stops
        while self._stops == stops and not done():
            self._expected = stops
            self.poll(None)

    def stop(self) -> None:
        """End `loop` at once, from a handler, a signal handler or another thread. A later `loop` starts afresh.

        Nested loops (a handler that calls `loop`) all end.
        """
        self._stopped = True
        self._stops += 1
        self._wake()

    def _sleep(self, seconds: float, stops: int) -> None:
        """Sleep, but wake for `stop`."""
        outer, self._driver = self._driver, get_ident()
        self._sleeping = True
        try:
            if self._stops != stops:
                return
            pause = select.poll()
            pause.register(self._wakefd, select.POLLIN)
            deadline = time.monotonic() + seconds
            while self._stops == stops and (rest := deadline - time.monotonic()) > 0:
                if pause.poll(min(rest, _FAR) * 1000) and self._stops == stops:
                    self._internal(self._wakefd)  # woken for a call, not to stop: the call waits for the next poll
        finally:
            self._sleeping = False
            self._driver = outer
            if outer is None and self._closing:
                self._close()

    def _wake(self) -> None:
        fd = self._wakefd
        if fd >= 0:
            try:
                os.eventfd_write(fd, 1)
            except OSError:  # closed this moment, or its counter is full: then it is awake anyway
                pass

    # -- a poller is a dispatcher itself ---------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor of the epoll set, readable whenever `handle_read` has something to do.

        So another poller, or any event loop that can watch a descriptor, can drive this one, timers included.
        """
        face = self._face
        if face is None:
            epoll = self._epoll or self._open()
            try:
                face = select.epoll()
            except OSError as error:
                raise advise(error, "open") from None
            face.register(epoll.fileno(), select.EPOLLIN)
            self._face = face
            self._arm()
            if self._calls or self._revisit:
                self._wake()
        return face.fileno()

    def handle_read(self) -> None:
        """Do what is ready, without waiting."""
        self.poll(0)

    # -- opening and closing ---------------------------------------------------------------------------------------

    def _open(self) -> select.epoll:
        self._epoll = epoll = self._fill()
        return epoll

    def _fill(self) -> select.epoll:
        """Return a new set that watches what is ours."""
        try:
            epoll = select.epoll()
            try:
                if self._wakefd < 0:
                    self._wakefd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                epoll.register(self._wakefd, select.EPOLLIN)
                for number in self._helpers:
                    epoll.register(number, select.EPOLLIN)
                if self._alarm is not None:
                    epoll.register(self._alarm.fd, self._alarm.EVENTS)
            except BaseException:
                epoll.close()
                raise
        except OSError as error:
            raise advise(error, "open") from None
        return epoll

    def close(self) -> None:
        """Close the dispatchers registered here, unregister the rest, drop all timers and calls, free the set.

        A poller that is registered with another is unregistered there. When another thread is in `poll` or `loop`,
        that thread returns, and does the closing on its way out. Closing twice is harmless, and a closed poller may
        be used again.
        """
        self._closing = True
        self.stop()
        # Set before, read afterwards; `poll` does it the other way round. So at least one of the two sees the other.
        driver = self._driver
        if driver is None or (driver == get_ident() and not self._sleeping):
            self._close()

    def _close(self) -> None:
        if not self._closing_lock.acquire(blocking=False):
            return  # another thread is at it
        failure: BaseException | None = None
        try:
            owner = _owners.get(id(self))
            outer = owner() if owner is not None else None
            if outer is not None:
                outer.unregister(self)
            for target in self:
                try:
                    self.unregister(target)
                    if isinstance(target, Member):
                        target.close()
                except Exception as error:
                    failure = error  # raised when all the others are closed
            self._timers.clear()
            self._calls.clear()
            self._revisit.clear()
            self._stopped = True
            self._release()
        finally:
            self._closing = False
            self._closing_lock.release()
        if failure is not None:
            raise failure

    def _release(self) -> None:
        self._late.clear()
        self._odd.clear()
        self._stale = False
        epoll, self._epoll = self._epoll, None
        face, self._face = self._face, None
        alarm, self._alarm = self._alarm, None
        wakefd, self._wakefd = self._wakefd, -1
        for opened in (face, epoll, alarm):
            if opened is not None:
                opened.close()
        if wakefd >= 0:
            os.close(wakefd)

    def _abandon(self) -> None:
        """In a forked child: close the inherited descriptors, touch nothing that the parent uses."""
        registrations = list(self._table.values())
        # Emptied in place: the fork may have happened in a handler, with a poll() on the stack that holds the table.
        self._table.clear()
        self._helpers.clear()
        self._timers.clear()
        self._calls.clear()
        self._revisit.clear()
        self._sleeping = self._closing = False
        self._stopped = True
        self._stops += 1
        self._closing_lock = allocate_lock()  # a thread that held it is not in the child
        self._release()
        for registration in registrations:
            if isinstance(registration.target, Member):
                registration.target._abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Attributes are missing when the constructor failed, modules when the interpreter shuts down.
        try:
            for registration in self._table.values():
                _owners.pop(id(registration.target), None)
            self._release()
        except (AttributeError, OSError, TypeError):
            pass


def _after_fork_in_child() -> None:
    _owners.clear()
    for poller in list(_pollers):
        poller._abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)

_defaultPoller = Poller()
