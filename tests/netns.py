"""Private network namespaces: the one the tests run in, and others that stand for hosts on a wire.

A namespace lives as long as a process or a descriptor refers to it. So a host here is nothing but an open
/proc/self/ns/net, made by leaving for a new namespace and coming back; when the descriptor is closed, also
because the test run was killed, the namespace and every wire to it are gone. Nothing has a name that could
collide or be left over. An ordinary user gets the same powers from a user namespace (user_namespaces(7)),
which `enter` makes.

Run as a program, `python netns.py COMMAND...` replaces itself with a command in a private namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

# clone(2). The os module has unshare and setns from Python 3.12 on; until that is the oldest, the C library's
# serve.
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# Programs of the administrator are not on every user's PATH.
os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"

#: Whether `enter` succeeded: this process is in a network namespace of its own.
private = False
#: Why it is not, in words.
reason = "nobody asked for a private network namespace yet"
#: Whether we have root's powers over the machine, and not only over a user namespace.
real_root = os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _call(function: Callable[..., int], *args: int) -> None:
    if function(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def enter() -> bool:
    """Move this process into a private network namespace with `lo` up and multicast routed to it.

    Must be called from the main thread, before other threads exist: a user namespace is given to
    single-threaded processes only, and /proc/self/net shows what the main thread sees. Returns whether it
    succeeded; `reason` tells why not.
    """
    global private, reason
    if shutil.which("ip") is None:
        reason = "the program `ip` is missing (Debian: apt-get install iproute2)"
        return False
    for flags in (CLONE_NEWNET, CLONE_NEWNET | CLONE_NEWUSER):
        # A namespace cannot be left again for the one before without root's powers, and some systems give one
        # without the right to configure it. So a child tries first.
        child = os.fork()
        if child == 0:
            status = errno.EPERM
            try:
                _enter(flags)
                status = 0
            except OSError as error:
                status = error.errno or errno.EPERM
            except RuntimeError:  # a namespace without the right to configure it
                pass
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            _enter(flags)
            private, reason = True, ""
            return True
        reason = f"this system gives no network namespace ({os.strerror(status)})"
    return False


def _enter(flags: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _call(_libc.unshare, flags)
    if flags & CLONE_NEWUSER:
        # From here on we count as root; what is named after the user, as temporary directories are, must not
        # be taken for root's.
        os.environ.setdefault("LOGNAME", f"uid{uid}")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    # With a source address, or the packets have 0.0.0.0.
    _set_up("route add 224.0.0.0/4 dev lo src 127.0.0.1", metric=1)


def _set_up(*commands: str, metric: int) -> None:
    """Bring up `lo` in the namespace we are in; the metric puts it before or after the wires."""
    _ip("link set lo up", *commands)
    defaults = Path("/proc/sys/net/ipv6/conf/default")
    if defaults.exists():
        # No waiting for duplicate addresses to show up (RFC 4862): they cannot.
        (defaults / "accept_dad").write_text("0")
        # On lo only a route of type `local` delivers; `multicast` is accepted and swallows everything.
        _ip(f"-6 route add local ff00::/8 dev lo table local metric {metric}")


def _ip(*commands: str) -> None:
    for command in commands:
        done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise RuntimeError(f"`ip {command}` failed: {done.stderr.strip()}")


class Host:
    """A network namespace that stands for another machine, or (`Lab.here`) the one the tests are in."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd
        self._processes: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    @property
    def path(self) -> str:
        """A file that stands for the namespace, as `ip` and nsenter take it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be on this host, with the calling thread, for the length of a with statement.

        Sockets opened meanwhile stay on this host for good, and so do processes started meanwhile.
        """
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call(_libc.setns, self._fd, CLONE_NEWNET)
            try:
                yield
            finally:
                _call(_libc.setns, before, CLONE_NEWNET)
        finally:
            os.close(before)

    def ip(self, *commands: str) -> None:
        """Run `ip` on this host, once for each command line."""
        with self.inside():
            _ip(*commands)

    def sysctl(self, key: str, value: object) -> None:
        """Set a kernel parameter below net, such as "ipv4.igmp_max_memberships", on this host."""
        with self.inside():
            Path("/proc/sys/net", *key.split(".")).write_text(str(value))

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on this host, by default with pipes for text; closing the lab ends it."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        options.setdefault("stdin", subprocess.DEVNULL)
        with self.inside():
            process = subprocess.Popen(command, **options)
        self._processes.append(process)
        return process

    def run(
        self, command: Sequence[str], timeout: float = 20, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program on this host to its end, by default with its output captured as text."""
        options = {"capture_output": True, "text": True, **options}
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        with self.inside():
            return subprocess.run(command, timeout=timeout, **options)

    def python(self, code: str, *args: str, timeout: float = 20) -> str:
        """Run lines of Python on this host and return what they print; they must succeed."""
        done = self.run(python(code, *args), timeout)
        if done.returncode:
            raise AssertionError(f"on {self.name}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return str(done.stdout)

    def close(self) -> None:
        """End its programs and forget the namespace, which then is gone with all its devices."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._processes.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def python(code: str, *args: str) -> list[str]:
    """Return the command that runs lines of Python, with the interpreter we are run by."""
    return [sys.executable, "-c", textwrap.dedent(code), *args]


class Lab:
    """Hosts and the wires between them; all are gone when it is closed.

    >>> lab = Lab()
    >>> alice, bob = lab.pair()
    >>> bob.python("print('bob')")
    'bob\\n'
    >>> lab.close()
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        #: The namespace that the tests are in.
        self.here = self._add(Host("here", os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)))

    def _add(self, host: Host) -> Host:
        self._stack.callback(host.close)
        return host

    def host(self, name: str) -> Host:
        """Make a host with nothing but `lo`."""
        with self.here.inside():  # that is, come back afterwards
            _call(_libc.unshare, CLONE_NEWNET)
            host = self._add(Host(name, os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)))
            _set_up(metric=2048)  # the kernel's routes for the wires have 256
        return host

    def link(self, a: Host, a_device: str, b: Host, b_device: str, net: int = 0) -> None:
        """Join two hosts by a wire with a network device at each end.

        The ends get 10.99.`net`.1 and .2 (/24), fd99:0:0:`net`::1 and ::2 (/64), and a route for all IPv4
        groups; of several such routes on a host the one with the lowest `net` is used, and on `Lab.here` that
        of `lo`.
        """
        a.ip(f"link add {a_device} type veth peer name {b_device} netns {b.path}")
        if self.here in (a, b):
            # Other hosts take their devices with them when they go, but in the kernel's own time.
            device = a_device if a is self.here else b_device
            self._stack.callback(self.here.ip, f"link del {device}")
        for number, host, device in ((1, a, a_device), (2, b, b_device)):
            self._configure(host, device, net, number)
        for host, device in ((a, a_device), (b, b_device)):
            self._await_ready(host, device)

    def segment(self, *hosts: Host, device: str = "v0", net: int = 0) -> Host:
        """Join any number of hosts by a switch without IGMP snooping, and return the switch.

        Each host gets a device of the given name, and the addresses of `link` numbered from 1 in the order
        given. The switch has their other ends as p1, p2 ... in the bridge br0.
        """
        switch = self.host("switch")
        switch.ip("link add br0 type bridge mcast_snooping 0", "link set br0 up")
        for number, host in enumerate(hosts, 1):
            switch.ip(f"link add p{number} type veth peer name {device} netns {host.path}")
            if host is self.here:
                self._stack.callback(self.here.ip, f"link del {device}")
            switch.ip(f"link set p{number} master br0", f"link set p{number} up")
            self._configure(host, device, net, number)
        for host in hosts:
            self._await_ready(host, device)
        return switch

    def pair(self) -> tuple[Host, Host]:
        """Make two hosts joined by a wire: alice with the device va and bob with vb."""
        alice, bob = self.host("alice"), self.host("bob")
        self.link(alice, "va", bob, "vb")
        return alice, bob

    @staticmethod
    def _configure(host: Host, device: str, net: int, number: int) -> None:
        host.ip(
            f"address add 10.99.{net}.{number}/24 dev {device}",
            f"-6 address add fd99:0:0:{net:x}::{number:x}/64 dev {device} nodad",
            f"link set {device} up",
            f"route add 224.0.0.0/4 dev {device} metric {net + 1}",
        )

    @staticmethod
    def _await_ready(host: Host, device: str) -> None:
        """Wait until the kernel has noticed that both ends are up: IPv6 is set up only then."""
        deadline = time.monotonic() + 10
        tentative = 0x40  # IFA_F_TENTATIVE, linux/if_addr.h
        with host.inside():
            while time.monotonic() < deadline:
                table = Path("/proc/thread-self/net/if_inet6").read_text()
                ours = [words for words in map(str.split, table.splitlines()) if words[5] == device]
                if len(ours) >= 2 and not any(int(words[4], 16) & tentative for words in ours):
                    return
                time.sleep(0.002)
        raise TimeoutError(f"{device} on {host.name} has no working IPv6 addresses after 10 s")

    def close(self) -> None:
        """End all programs, remove all wires and hosts. Closing twice is harmless."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def main() -> None:
    """Replace this process by a command in a private namespace.

    With --or-skip in front, say why and succeed where there can be none; without, fail. In no case does the
    command run in the network we came from.
    """
    arguments = sys.argv[1:]
    skip = arguments[:1] == ["--or-skip"]
    command = arguments[skip:]
    if not command:
        sys.exit("usage: netns.py [--or-skip] COMMAND [ARGUMENT...]")
    if not enter():
        print(f"{'skipped' if skip else 'not run'}, for {reason}: {' '.join(command)}", file=sys.stderr)
        sys.exit(0 if skip else 3)
    os.execvp(command[0], command)  # noqa: S606  (no shell is meant)


if __name__ == "__main__":
    main()
