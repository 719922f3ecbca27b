"""The hosts and wires that other tests rely on, and what happens where there can be none."""

import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import netns
import pytest

ROOT = Path(__file__).parents[1]

RECEIVER = """
    import socket, struct, sys
    group, device = sys.argv[1:]
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(10)
    s.bind(("", 4242))
    index = socket.if_nametoindex(device)
    address = socket.inet_pton(family, group)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, address + struct.pack("@i", index))
    else:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, address + struct.pack("@4xi", index))
    print("joined", flush=True)
    packet, sender = s.recvfrom(100)
    print(packet.decode(), sender[0], flush=True)
"""
SENDER = """
    import socket, sys
    family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.sendto(b"hello", (sys.argv[1], 4242))
"""


def hear(host: netns.Host, group: str, device: str, sender: netns.Host) -> str:
    """Return what `host` prints about the packet that `sender` sends."""
    receiver = host.popen(netns.python(RECEIVER, group, device))
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "joined\n"
    sender.python(SENDER, group)
    output, errors = receiver.communicate(timeout=20)
    assert receiver.returncode == 0, errors
    return str(output).strip()


def test_a_packet_reaches_the_other_host(hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = hosts
    assert hear(bob, "224.0.42.42", "vb", alice) == "hello 10.99.0.1"
    assert hear(alice, "224.0.42.42", "va", bob) == "hello 10.99.0.2"


def test_an_ipv6_packet_reaches_the_other_host(hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = hosts
    assert hear(bob, "ff05::4242", "vb", alice) == "hello fd99::1"


def test_a_host_hears_itself_on_lo(lab: netns.Lab) -> None:
    host = lab.host("alone")
    host.ip("route add 224.0.0.0/4 dev lo src 127.0.0.1")
    assert hear(host, "224.0.42.42", "lo", host) == "hello 127.0.0.1"
    assert hear(host, "ff02::4242", "lo", host) == "hello ::1"


def test_a_packet_reaches_every_host_on_a_segment(lab: netns.Lab) -> None:
    first, second, third = (lab.host(name) for name in ("first", "second", "third"))
    lab.segment(first, second, third)
    assert hear(second, "224.0.42.42", "v0", first) == "hello 10.99.0.1"
    assert hear(third, "224.0.42.42", "v0", first) == "hello 10.99.0.1"


def test_a_host_may_have_two_interfaces_and_we_may_be_on_the_wire(lab: netns.Lab) -> None:
    middle, right = lab.host("middle"), lab.host("right")
    lab.link(lab.here, "left0", middle, "m0", net=1)
    lab.link(middle, "m1", right, "right0", net=2)
    assert [name for _, name in socket.if_nameindex()] == ["lo", "left0"]
    # The route of the lower net is the one that is used.
    assert hear(lab.here, "224.0.42.42", "left0", middle) == "hello 10.99.1.2"
    middle.ip("link set m0 down")
    assert hear(right, "224.0.42.42", "right0", middle) == "hello 10.99.2.1"


def test_sockets_opened_inside_a_host_stay_there(hosts: tuple[netns.Host, netns.Host]) -> None:
    alice, bob = hosts
    with bob.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
        theirs.bind(("10.99.0.2", 0))
        with alice.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"hello", theirs.getsockname())
            assert theirs.recv(100) == b"hello"
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_closing_a_lab_ends_its_programs_and_removes_its_devices() -> None:
    if not netns.private:
        pytest.skip(netns.reason)
    with netns.Lab() as lab:
        host = lab.host("other")
        lab.link(lab.here, "va", host, "vb")
        process = host.popen(["sleep", "1000"])
    assert process.returncode == -9
    assert [name for _, name in socket.if_nameindex()] == ["lo"]


def test_what_fails_on_a_host_is_told_with_its_output(lab: netns.Lab) -> None:
    with pytest.raises(AssertionError, match=r"(?s)on other: exit code 1.*ZeroDivisionError"):
        lab.host("other").python("1 / 0")


def test_our_own_network_is_private() -> None:
    if not netns.private:
        pytest.skip(netns.reason)
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert os.geteuid() == 0


# -- the frame of the test run itself, on a small copy of it -------------------------------------------------


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    """A project with our test frame, and no tests yet."""
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "setup.cfg", "tests/catalogue.py", "tests/conftest.py", "tests/netns.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run_pytest(frame: Path, tests: str, *wrapper: str) -> str:
    """Run pytest over these tests and return what it prints."""
    (frame / "tests" / "test_it.py").write_text(textwrap.dedent(tests))
    command = [*wrapper, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly"]
    # With no options but these, whatever the run was given that this one belongs to.
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        command, cwd=frame, env=env, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL
    )
    return done.stdout + done.stderr


@pytest.mark.needs_namespaces
def test_what_a_test_leaves_behind_or_changed_is_named(frame: Path) -> None:
    output = run_pytest(
        frame,
        """
        import os, resource, signal, socket, subprocess, threading
        import multicast

        kept = []

        def test_descriptor():
            kept.append(open("/etc/passwd"))

        def test_membership():
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, bytes([224, 1, 2, 3, 127, 0, 0, 1]))
            kept.append(s)

        def test_membership6():
            s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            group = socket.inet_pton(socket.AF_INET6, "ff02::4242")
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + bytes([1, 0, 0, 0]))
            kept.append(s)

        def test_thread():
            threading.Thread(target=threading.Event().wait, daemon=True, name="idler").start()

        def test_child():
            kept.append(subprocess.Popen(["sleep", "10"]))

        def test_registration():
            class Reader:
                def fileno(self): return kept[1].fileno()
                def handle_read(self): pass
            multicast.register(Reader())

        def test_nothing():
            multicast.poll()

        def test_zz_ends_the_child():
            kept[3].kill()
            kept[3].wait()

        def test_umask():
            os.umask(0)

        def test_directory():
            os.chdir("/")

        def test_limit():
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

        def test_signal():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

        def test_environment():
            os.environ["LEFT"] = "here"

        def test_environment_again():
            del os.environ["LEFT"]

        def test_namespace():
            os.unshare(os.CLONE_NEWNET) if hasattr(os, "unshare") else __import__("ctypes").CDLL(None).unshare(1 << 30)

        def test_what_is_restored(monkeypatch, tmp_path):
            monkeypatch.chdir(tmp_path)
            monkeypatch.setenv("LEFT", "restored")
        """,
    )
    assert "-> /etc/passwd" in output
    assert "membership of 224.1.2.3 on lo" in output
    assert "membership of ff02::4242 on lo" in output
    assert "thread 'idler'" in output
    assert "child process" in output
    assert "registration of <" in output
    assert "the umask: " in output
    assert "the working directory: " in output
    assert "the limit RLIMIT_NOFILE: " in output
    assert "the handler of <Signals.SIGUSR1: 10>: " in output
    assert "$LEFT: None before, 'here' now" in output
    assert "$LEFT: 'here' before, None now" in output
    assert "the network namespace: " in output
    assert "16 passed, 13 errors" in output


@pytest.mark.needs_namespaces
def test_where_namespaces_are_forbidden_only_tests_for_lo_alone_touch_the_network(frame: Path) -> None:
    output = run_pytest(
        frame,
        """
        import socket, subprocess
        import pytest

        def test_computes():
            assert 1 + 1 == 2

        def test_sends():
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            assert False, "not reached"

        def test_starts():
            subprocess.run(["false"], check=True)

        def test_hosts(hosts):
            assert False, "not reached"

        @pytest.mark.needs_namespaces
        def test_marked():
            assert False, "not reached"

        @pytest.mark.lo_alone
        def test_careful():
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
        """,
        *("unshare", "--user", "--map-root-user", "--net"),
        # A limit of the new user namespace, which holds for all below it too.
        *("sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh"),
    )
    assert "network: lo alone and TTL 0, for this system gives no network namespace" in output
    assert "2 passed, 4 skipped" in output
    assert "not for lo alone" in output
    assert "starts a program" in output


@pytest.mark.needs_namespaces
def test_a_command_may_be_run_in_a_private_namespace() -> None:
    command = [sys.executable, netns.__file__, *netns.python("import socket; print(socket.if_nameindex())")]
    assert subprocess.run(command, capture_output=True, text=True, timeout=20).stdout == "[(1, 'lo')]\n"
