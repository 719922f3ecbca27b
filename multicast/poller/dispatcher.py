"""`Dispatcher`: the base of senders, listeners and streams."""

from __future__ import annotations

import os
import socket as _socket
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, Self

from multicast.errors import ArgumentError, RegistrationError

from .polling import Poller, _defaultPoller
from .registration import Member


class _RegisterWhenBuilt(ABCMeta):
    """Registers a dispatcher when its whole constructor is done, a subclass's too.

    Done in the base constructor, a poller running in another thread would call handlers of a half-built object.
    It derives from ABCMeta so that dispatchers can be mixed with abstract base classes.
    """

    @property
    def __signature__(cls) -> Any:
        # What help() and editors show: the arguments of the constructor, and not those of __call__ below.
        import inspect

        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        arguments = list(signature.parameters.values())[1:]
        return signature.replace(parameters=arguments, return_annotation=inspect.Signature.empty)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        make: Callable[..., Any] = cls.__new__
        instance = make(cls, *args, **kwargs)
        if not isinstance(instance, cls):
            return instance
        try:
            instance.__init__(*args, **kwargs)
            instance._finish_construction()
        except BaseException:
            try:
                instance.close()
            except Exception:  # the subclass relies there on what its constructor has not made yet
                Dispatcher.close(instance)
            raise
        return instance


class Dispatcher(Member, metaclass=_RegisterWhenBuilt):
    """An object with a socket of its own that a poller drives; the base of senders, listeners and streams.

    Subclasses have `handle_read` and/or `handle_write`. The object is registered with `poller`, by default the
    default poller, as soon as its constructor has returned. It may be used as a context manager, which closes it.
    """

    #: The socket; closed when this object is closed.
    socket: _socket.socket | None = None
    _pid = 0
    _flags = 0

    def __init__(self, socket: _socket.socket, poller: Poller | None = None) -> None:
        if poller is not None and not isinstance(poller, Poller):
            socket.close()
            raise ArgumentError(f"poller must be a Poller, not {poller!r}")
        self.poller = _defaultPoller if poller is None else poller
        self.socket = socket
        self._pid = os.getpid()

    def _finish_construction(self) -> None:
        if not self._pid:  # it would be deaf, and nobody would know why
            raise RegistrationError(
                f"the constructor of {type(self).__name__} did not call that of its base class, so there is no socket;"
                " call super().__init__() there"
            )
        if self.socket is not None:
            self.poller.register(self, self._flags)

    def fileno(self) -> int:
        """Return the descriptor of the socket, -1 once closed."""
        return -1 if self.socket is None else self.socket.fileno()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.socket is None

    def close(self) -> None:
        """Leave the groups, unregister, and close the socket, each even if the one before failed; idempotent.

        To be called in the thread that drives the poller; from another, ask for it: ``poller.call_soon(this.close)``.
        """
        socket = self.socket
        if socket is None:
            return
        try:
            if self._pid == os.getpid():
                # In a forked child the socket is the parent's too: what is left or removed there, the parent loses.
                self._leave(socket)
            self.poller.unregister(self)
            self.socket = None; socket.close()  # noqa: E702 -- whatever line a signal handler interrupts
        except BaseException:
            try:
                self.poller.unregister(self)
            finally:
                self.socket = None
                socket.close()
            raise

    def _leave(self, socket: _socket.socket) -> None:
        """Undo what the kernel would otherwise keep until the last copy of the socket is closed."""

    def _abandon(self) -> None:
        """In a forked child: give back the child's copy of the socket, which the parent goes on using."""
        socket, self.socket = self.socket, None
        if socket is not None:
            socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # noqa: S110 -- at interpreter shutdown whatever close() uses may be gone already
            pass
