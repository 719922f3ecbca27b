"""What the doctor can find: the form of a finding, and all its sentences with what mends each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

__all__ = ["MESSAGES", "Finding", "Message", "Status"]

#: ``ok``; ``warn``: works, or may not be a fault; ``fail``: this stops packets; ``skip``: could not be looked at.
Status: TypeAlias = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    #: The name of the check, such as ``rp_filter``.
    check: str
    #: ``ok``, ``warn``, ``fail`` or ``skip``.
    status: Status
    #: The name of the message, which stays the same from version to version; empty for ``ok`` and ``skip``.
    code: str = ""
    #: In one sentence what is wrong; for ``ok`` what is right, for ``skip`` why it was not looked at.
    cause: str = ""
    #: Commands that mend it, each an alternative; what is in capitals is to be filled in.
    fixes: tuple[str, ...] = ()
    #: What was measured.
    seen: str = ""


class Message(NamedTuple):
    """A cause, and what mends it; names in braces are filled in."""

    cause: str
    fixes: tuple[str, ...]


#: Everything the doctor can find wrong, by the code of the finding, in the order of the checks.
MESSAGES: dict[str, Message] = {
    # group
    "zone-missing": Message(
        "{group} is a different group on each link, so it needs an interface, and none was named.",
        ("multicast doctor {zoned}",),
    ),
    "source-missing": Message(
        "{group} is for source-specific joins and was asked for without a source, so routers do not forward it.",
        ("multicast doctor {source}@{target}",),
    ),
    # interface
    "none-up": Message("No interface of this host is up.", ("sudo ip link set dev {interface} up",)),
    "interface-down": Message("The interface {interface} is down.", ("sudo ip link set dev {interface} up",)),
    "no-carrier": Message(
        "The interface {interface} has no carrier: no cable, or the other end is off.",
        ("ip link show dev {interface}",),
    ),
    "no-multicast-flag": Message(
        "The interface {interface} is not set up for multicast: it lacks the flag MULTICAST.",
        ("sudo ip link set dev {interface} multicast on",),
    ),
    "bridge-port": Message(
        "The interface {interface} is a port of {master}, which takes what comes in by it, so programs get that on"
        " {master}.",
        ("multicast listen {listened} -i {master}",),
    ),
    "no-address": Message(
        "The interface {interface} has no IPv4 address, so its membership reports come from 0.0.0.0, which routers and"
        " switches may ignore, and nothing can be sent by it.",
        ("sudo ip address add ADDRESS/PREFIX dev {interface}",),
    ),
    "no-ipv6": Message(
        "The interface {interface} has no IPv6 address, so IPv6 does not work on it.",
        ("sudo sysctl -w net/ipv6/conf/{interface}/disable_ipv6=0",),
    ),
    "join-refused": Message("{group} cannot be joined on {interface}: {reason}.", ("ip address show dev {interface}",)),
    # route
    "no-route": Message(
        "This host has no route for {group}, so programs that name no interface can neither join nor send to it.",
        ("multicast listen {listened} -i {interface}", "sudo ip {six}route add {net} dev {interface}"),
    ),
    "no-route-down": Message(
        "The interface {down} is down, and no route for {group} is left, so programs that name no interface can neither"
        " join nor send to it.",
        ("sudo ip link set dev {down} up", "multicast listen {listened} -i {interface}"),
    ),
    "route-elsewhere": Message(
        "By the routes {group} belongs to {routed}, which {problem}; programs that name no interface join it there.",
        ("multicast listen {listened} -i {interface}", "sudo ip {six}route replace {net} dev {interface}"),
    ),
    "no-group-route": Message(
        "The kernel discards what comes in by {interface} for {group}: the route for groups of IPv6 is missing there,"
        " which the kernel makes itself when an interface comes up.",
        ("sudo ip -6 route add multicast ff00::/8 dev {interface} table local",),
    ),
    # arrival
    "other-interface": Message(
        "The packets arrive on {arriving}, and not on {interface}.",
        ("multicast listen {listened} -i {named}",),
    ),
    "other-source": Message(
        "The packets come from {arriving}, and not from {source}.",
        ("multicast listen {found}",),
    ),
    "other-interface-sent": Message(
        "This host sends its packets for {group} by {arriving}, and not by {interface}.",
        ("multicast send -i {first} {target} TEXT",),
    ),
    "other-port": Message(
        "The packets for {group} go to port {arriving}, and not to port {port}.",
        ("multicast listen {found}",),
    ),
    "other-group": Message(
        "The packets on port {port} go to {arriving}, and not to {group}.",
        ("multicast listen {found}",),
    ),
    "lost-in-bridge": Message(
        "The packets arrive on {arriving}, a port of {master}, and do not reach {master}: rules of the bridge drop"
        " them, or it does not hand them on.",
        ("sudo nft list ruleset", "bridge -d link show dev {arriving}", "bridge mdb show dev {master}"),
    ),
    "unread-port": Message(
        "Packets for groups joined on this host arrive at ports where no program listens; if they are for {group}, they"
        " go to another port than {port}.",
        ("sudo {again}",),
    ),
    "xdp": Message(
        "Nothing for {where} was seen in {seconds} s, and an XDP program is attached to {attached}, which can discard"
        " packets before anything else on this host sees them.",
        ("sudo ip link set dev {attached} xdp off  # to see whether packets come then",),
    ),
    "behind-router": Message(
        "Nothing was delivered, and the source {source} is behind the router {gateway}: its packets need a TTL of 2 or"
        " more, and every router on the way must forward the group.",
        ("multicast send -t 32 {target} TEXT  # on the sender",
         "sudo smcroutectl add INTERFACE {source} {group} INTERFACE  # on each router, by which it comes and goes"),
    ),
    "nothing": Message(
        "Nothing for {where} reached this host in {seconds} s, and no fault was found on it: nothing was sent"
        " meanwhile, or the sender, a switch or a router keeps it back.",
        ("sudo {again} -w 60  # where packets are rare",
         "sudo multicast doctor {target} --sending  # on the sender"),
    ),
    "nothing-unseen": Message(
        "Nothing for {where} was delivered in {seconds} s; whether it reached this host takes root to see.",
        ("sudo {again} -w 60", "multicast send {target} TEXT  # on the sender"),
    ),
    # bridge
    "no-querier": Message(
        "The bridge {bridge} looks into memberships (snooping) and has no querier: nothing goes to members behind"
        " {ports}, for mcast_flood is off there.",
        ("sudo ip link set dev {bridge} type bridge mcast_querier 1",
         "sudo ip link set dev {bridge} type bridge mcast_snooping 0"),
    ),
    # ttl
    "ttl-zero": Message(
        "{source} sends with TTL 0, which is meant to stay on the sending host; no other may count on it.",
        ("multicast send -t 1 {target} TEXT  # on the sender",),
    ),
    # address
    "other-mac": Message(
        "The frames with the packets for {group} go to the Ethernet address of another host, so this host discards"
        " them; they should go to {mac}.",
        ("sudo tcpdump -c 5 -e -n -i {interface} dst host {group}  # shows the addresses",),
    ),
    "vlan-tag": Message(
        "The packets for {group} come with the tag of {vlan}, and this host has no interface for it that is up.",
        ("sudo ip link add link {interface} name {interface}.{number} type vlan id {number}",),
    ),
    "bad-length": Message(
        "The packets for {group} have a length of UDP that does not fit the packet, so the kernel discards them; it is"
        " a fault of the sender {source}, or on the way.",
        ("sudo tcpdump -c 5 -v -n -i {interface} dst host {group}  # shows the lengths",),
    ),
    "duplicate-address": Message(
        "The packets come from {source}, which is also an address of this host, so the kernel discards them: two hosts"
        " have the same address.",
        ("sudo ip address del {source}/PREFIX dev INTERFACE  # on one of both, and give it another",),
    ),
    "own-source": Message(
        "This host sends the packets by {leaving} and gets them back by {interface}; the kernel discards what comes in"
        " with an address of this host as its source.",
        ("sudo sysctl -w net/ipv4/conf/{interface}/accept_local=1",),
    ),
    "martian-source": Message(
        "The packets come from {source}, which is no address that a packet may come from, so the kernel discards them.",
        ("multicast send {target} TEXT  # on the sender, with an address of its network",),
    ),
    # fragments
    "fragments-lost": Message(
        "Datagrams longer than the MTU arrive in fragments, and {lost} of {begun} could not be put together: fragments"
        " are missing.",
        ("multicast send -s 1452 -f FILE {target}  # on the sender",),
    ),
    "fragments-unfinished": Message(
        "Datagrams longer than the MTU arrive in fragments, and none of them could be put together: fragments are"
        " missing.",
        ("multicast send -s 1452 -f FILE {target}  # on the sender",),
    ),
    # checksum
    "bad-checksum": Message(
        "The kernel discards packets with wrong checksums: a fault of the sender, or of hardware on the way.",
        ("sudo ethtool -K INTERFACE tx off  # on the sender", "sudo ethtool -K {interface} rx off"),
    ),
    # rp_filter
    "strict-reverse-path": Message(
        "The kernel discards these packets: strict reverse path filtering is on for {interface}, and this host would"
        " not answer {source} by {interface}.",
        ("sudo ip route add {source} dev {interface}", "sudo sysctl -w {settings}"),
    ),
    "loose-reverse-path": Message(
        "The kernel discards these packets: reverse path filtering is on for {interface}, and this host has no route at"
        " all to {source}.",
        ("sudo ip route add {source} dev {interface}", "sudo sysctl -w {settings}"),
    ),
    "reverse-path": Message(
        "The kernel discards packets by the reverse path filter: this host would not answer their source by the"
        " interface they come in on.",
        ("sudo {again}", "ip route get SOURCE"),
    ),
    "would-be-filtered": Message(
        "Packets from {source} would be discarded on {interface}: reverse path filtering is on, and this host would not"
        " answer {source} by {interface}.",
        ("sudo ip route add {source} dev {interface}", "sudo sysctl -w {settings}"),
    ),
    # firewall
    "firewall-rule": Message("A rule of the firewall drops these packets: {rule}.", ("{allow}",)),
    "firewall-translates": Message(
        "A rule of the firewall sends these packets to another address or port: {rule}.",
        ("{listing}  # and delete the rule by its handle or number",),
    ),
    "tc-ingress": Message(
        "The packets reach this host and are not delivered, and a filter of tc for what comes in by {interface} may be"
        " why.",
        ("tc -s filter show dev {interface} ingress",),
    ),
    "firewall-candidate": Message(
        "The packets reach this host and are not delivered, and a rule of the firewall may be why: {rule}.",
        ("{allow}",),
    ),
    "discarded": Message(
        "Packets for groups joined on this host arrive, and are discarded before any program gets them; a firewall is"
        " the likely reason.",
        ("sudo {again}", "sudo nft list ruleset"),
    ),
    # igmp
    "version-forced": Message(
        "{protocol} is forced to version {version} on {interface}, which cannot name sources: routers are not told of"
        " the source-specific join.",
        ("sudo sysctl -w {setting}=0",),
    ),
    "version-old": Message(
        "A querier on {interface} speaks IGMP version {version}, which cannot name sources: routers are not told of the"
        " source-specific join.",
        ("ip maddress show dev {interface}",),
    ),
    "reports-dropped": Message(
        "A rule of the firewall drops the membership reports of this host, so routers and switches that look into"
        " memberships send nothing for {group} here: {rule}.",
        ("{allow}",),
    ),
    "queries-dropped": Message(
        "A rule of the firewall drops the queries of {protocol}, so this host does not answer them; routers and"
        " switches that look into memberships forget it after some minutes: {rule}.",
        ("{allow}",),
    ),
    "no-query": Message(
        "Nobody asked for memberships on {interface} in {seconds} s: there is no querier, and a switch that looks into"
        " memberships (snooping) forgets the members after some minutes.",
        ("sudo ip link set dev BRIDGE type bridge mcast_querier 1  # on a Linux bridge; on switches it is a setting",),
    ),
    # port
    "port-held": Message(
        "Port {port} is held by {program} and not shared.",
        ("sudo ss -ulnp 'sport = :{port}'",),
    ),
    "port-other-user": Message(
        "Port {port} is held by {program} and not shared with other users, so it could not be heard whether anything"
        " arrives.",
        ("sudo -u '#{user}' {again}",),
    ),
    "port-privileged": Message(
        "Port {port} is for root to listen at, so it could not be heard whether anything arrives.",
        ("sudo {again}",),
    ),
    # membership
    "limit-reached": Message(
        "{group} could not be joined: the limit of memberships of a socket is reached, {limit}.",
        ("sudo sysctl -w net.ipv4.igmp_max_memberships={more}",),
    ),
    "limit-sources": Message(
        "{group} could not be joined for so many sources: {count} were asked for, and the limit is {limit} for each"
        " group of a socket.",
        ("sudo sysctl -w {setting}={more}",),
    ),
    "limit-reached-other": Message(
        "Port {port} is used by {program}, and nobody has joined {group}: {count} memberships are on this host, and a"
        " socket can have {limit}, so one may be at its limit.",
        ("sudo sysctl -w net.ipv4.igmp_max_memberships={more}",),
    ),
    # loopback
    "loopback-off": Message(
        "This host sends to {group} and does not hear it itself: the loopback of {program} is switched off"
        " (IP_MULTICAST_LOOP).",
        ("multicast send {target} TEXT",),
    ),
    "unheard": Message(
        "This host sends to {group} and does not hear it itself: the sender has its loopback switched off"
        " (IP_MULTICAST_LOOP), or the firewall drops what comes back.",
        ("multicast send {target} TEXT", "sudo nft list ruleset"),
    ),
    "loopback-perhaps": Message(
        "A program of this host sends to some group and is not heard here; the loopback of {program} is switched off"
        " (IP_MULTICAST_LOOP).",
        ("sudo {again}",),
    ),
    "output-rule": Message(
        "This host sends to {group}, and a rule of its firewall drops that: {rule}.",
        ("{allow}",),
    ),
    "output-candidate": Message(
        "This host sends packets that its firewall drops, and all of those to {group} would be: {rule}.",
        ("{allow}",),
    ),
    "output-refused": Message(
        "This host does not permit us to send to groups: a rule of the firewall for output, or a BPF program of the"
        " cgroup.",
        ("sudo {again}", "sudo nft list ruleset"),
    ),
    "lo-dead": Message(
        "Not even a packet with TTL 0 by lo comes back on this host.",
        ("sudo ip link set dev lo up", "sudo nft list ruleset"),
    ),
    # delivery
    "partly-delivered": Message(
        "Of the packets from {senders}, {lost} of {came} that reach this host are not delivered, and none of the checks"
        " tells why.",
        ("multicast interfaces",),
    ),
    "partly-firewall": Message(
        "Of the packets from {senders}, {lost} of {came} that reach this host are not delivered, and a rule of the"
        " firewall may be why: {rule}.",
        ("{allow}",),
    ),
    "not-delivered": Message(
        "The packets reach this host and are not delivered, and none of the checks tells why.",
        ("sudo {again} -w 30", "nstat -az"),
    ),
    # lines
    "line-silent": Message(
        "Nothing of the feed comes by the line {line}, and it comes by another.",
        ("sudo multicast doctor {line}",),
    ),
    "line-lacks": Message(
        "Packets are lost on the way of the line {line}: {missing} messages came by another line, and not by this one.",
        ("sudo multicast doctor {line} -w 30",),
    ),
    # seal
    "not-sealed": Message(
        "The packets are not sealed, so a program with a key refuses all of them.",
        ("multicast send {target} TEXT --key FILE  # on the sending host",),
    ),
    "other-key": Message(
        "The packets arrive sealed with another key: they have {others}, and the key of the program is {key}.",
        ("scp SENDER:FILE FILE  # the key file of the sender, for the program here",),
    ),
    "other-clock": Message(
        "The clock of the sender is {skew} s {side} the clock of this host, and packets are refused from {most} s on.",
        ("sudo timedatectl set-ntp true  # on both hosts",),
    ),
    # program
    "joined-elsewhere": Message(
        "The packets arrive on {arriving}, and {group} is joined on {interface} only; the port is used by {program}.",
        ("multicast listen {listened} -i {named}",),
    ),
    "joined-for-others": Message(
        "{group} is joined for {source} only, from where nothing was delivered in {seconds} s; packets from {arriving}"
        " were. The port is used by {program}.",
        ("multicast listen {found}", "sudo multicast doctor {target} --from {wanted}"),
    ),
    "source-blocked": Message(
        "The packets come from {arriving}, which all that have joined {group} refuse; the port is used by {program}.",
        ("multicast listen {found}",),
    ),
    "stopped": Message(
        "{program} is stopped and reads nothing; {queued} bytes wait in its socket.",
        ("kill -CONT {pid}",),
    ),
    "bound-unicast": Message(
        "{program} is bound to {bound}, an address of this host, so no packet for a group reaches it; it has to bind to"
        " {group} or to the wildcard address.",
        ("ss --udp --listening --numeric --processes 'sport = :{port}'",),
    ),
    "bound-device": Message(
        "{program} takes packets from {device} alone (SO_BINDTODEVICE), and they arrive on {arriving}.",
        ("ss --udp --listening --numeric --processes 'sport = :{port}'",),
    ),
    "connected-unicast": Message(
        "{program} is connected to {peer}, so it takes what goes from there to {bound} and no packet for a group.",
        ("ss --udp --numeric --processes 'sport = :{port}'",),
    ),
    "connected": Message(
        "{program} is connected to {peer}, so it takes packets from there alone, and these come from elsewhere.",
        ("ss --udp --numeric --processes 'sport = :{port}'",),
    ),
    "bound-other-group": Message(
        "{program} is bound to {bound}, so it gets what goes to {bound} alone, and nothing for {group}.",
        ("ss --udp --listening --numeric --processes 'sport = :{port}'",),
    ),
    "not-joined-itself": Message(
        "{program} takes packets only to groups that it has joined itself (IP_MULTICAST_ALL is off), and it has not"
        " joined {group} on {arriving}, where it arrives.",
        ("multicast listen {listened}",),
    ),
    "shared-by-hash": Message(
        "{program} may get a part of the packets alone: it is the only socket at the port that has joined {group} on"
        " {arriving}, and {others} has the same port by SO_REUSEPORT; kernels such as 6.18 then give each sender's"
        " packets to either of them.",
        ("ss --udp --listening --numeric --processes 'sport = :{port}'",),
    ),
    "no-program": Message("There is no program {name} on this host.", ("ps -e -o pid,comm,args",)),
    "program-apart": Message(
        "{name} is in another network namespace, as programs in containers are; what arrives there is not seen here.",
        ("sudo nsenter -t {pid} -n {again} --program {pid}",),
    ),
    "program-hidden": Message(
        "Which sockets {name} has is not for this user to see, so it was not judged.", ("sudo {again}",)
    ),
    "program-no-socket": Message(
        "{name} has no UDP socket, so it receives nothing by UDP.", ("ss --udp --listening --numeric --processes",)
    ),
    "program-other-port": Message(
        "{name} has no UDP socket at port {port}; it has {places}.",
        ("ss --udp --all --numeric --processes",),
    ),
    "ipv6-only": Message(
        "{name} listens at port {port} for IPv6 alone (IPV6_V6ONLY), and {group} is a group of IPv4.",
        ("ss --udp --listening --numeric --processes 'sport = :{port}'",),
    ),
    "not-joined": Message(
        "{where} is used by {program}, and no program of this host has joined the group.",
        ("multicast listen {listened}",),
    ),
    "joined-other-group": Message(
        "Port {port} is used by {program}, and no program of this host has joined {group}.",
        ("multicast listen {listened}",),
    ),
    # buffer
    "reads-nothing": Message(
        "{program} does not read, or hardly: its receive buffer is full, and of {came} packets that came in {seconds} s"
        " the kernel dropped {dropped} for it.",
        ("ps -o pid,stat,wchan:24,pcpu,args -p {pid}",),
    ),
    "overflow": Message(
        "{program} reads too slowly: its receive buffer overflowed, and the kernel dropped {dropped} packets in"
        " {seconds} s.",
        ("sudo sysctl -w net.core.rmem_max={wanted}", "sudo sysctl -w net.core.rmem_default={wanted}"),
    ),
    "overflow-own-buffer": Message(
        "{program} reads too slowly: its receive buffer, of the {size} bytes that it asked for itself, overflowed, and"
        " the kernel dropped {dropped} packets in {seconds} s.",
        ("ss --udp --listening --numeric --memory --processes 'sport = :{port}'  # the program sets it: SO_RCVBUF",),
    ),
    "queue-grows": Message(
        "{program} reads more slowly than packets come, or not at all: what waits in its socket grew from {before} to"
        " {queued} bytes in {seconds} s.",
        ("ps -o pid,stat,wchan:24,pcpu,args -p {pid}",),
    ),
    "refused-at-socket": Message(
        "{program} gets nothing of this: a filter of its socket or a BPF program of its cgroup refuses all packets.",
        ("sudo bpftool cgroup tree  # shows programs of cgroups; a filter of the socket is in the program itself",),
    ),
    "refused-by-cgroup": Message(
        "{program} gets nothing of this: its socket has no filter, so a BPF program of its cgroup refuses all packets.",
        ("cat /proc/{pid}/cgroup", "sudo bpftool cgroup tree  # if it is installed"),
    ),
    "refused-here": Message(
        "The kernel gives no packets for {group} to the sockets that are opened here: a BPF program of the cgroup that"
        " this shell is in refuses them.",
        ("cat /proc/self/cgroup", "sudo bpftool cgroup tree  # if it is installed"),
    ),
    "ipsec": Message(
        "An IPsec policy of this host refuses packets ({counter}), and they do not reach {program}.",
        ("sudo ip xfrm policy",),
    ),
    # package
    "two-packages": Message(
        "Several packages own the name multicast: {names}; which one is imported is chance.",
        ("pip uninstall -y {listed} && pip install multicast-poller",),
    ),
    "engine-missing": Message(
        "The C form of the packet path is not in use, which makes it slower and nothing else: {reason}.",
        ("MULTICAST_REQUIRE_EXT=1 pip install --force-reinstall --no-binary multicast-poller multicast-poller",),
    ),
    # the sender's end
    "unsent": Message(
        "Nothing for {where} left this host in {seconds} s, and nothing was found that keeps it back: no program sends"
        " to it, or not to this address and port.",
        ("multicast send {target} TEXT  # leaves, and the program sends elsewhere or not at all",),
    ),
    "unsent-no-route": Message(
        "Nothing for {where} left this host, which has no route for {group}: programs that name no interface cannot"
        " send to it.",
        ("sudo ip {six}route add {net} dev {interface}", "multicast send -i {interface} {target} TEXT"),
    ),
    "egress-filter": Message(
        "Nothing for {where} left this host, and a filter of tc for what leaves by {interface} may be why.",
        ("tc -s filter show dev {interface} egress",),
    ),
    "unsent-candidate": Message(
        "Nothing for {where} left this host, and a rule of its firewall may be why: {rule}.",
        ("{allow}",),
    ),
    "queue-drops": Message(
        "The queue of {interface} ({kind}) drops packets before they leave, {count} in {seconds} s: a shaper, or a rate"
        " that the interface cannot carry.",
        ("tc -s qdisc show dev {interface}", "sudo ip link set dev {interface} txqueuelen 10000"),
    ),
    "sent-ttl-zero": Message(
        "The packets for {where} have a TTL of 0, so they stay on this host.",
        ("multicast send -t 1 {target} TEXT  # the program has to set IP_MULTICAST_TTL to 1 or more",),
    ),
    "stays-on-lo": Message(
        "The packets for {where} go by lo, so they stay on this host.",
        ("multicast send -i INTERFACE {target} TEXT  # the program has to name the interface",
         "sudo ip {six}route replace {net} dev INTERFACE"),
    ),
    "leaves-elsewhere": Message(
        "The packets for {where} leave by {arriving}, and not by {interface}.",
        ("sudo ip {six}route replace {group} dev {interface}", "multicast send -i {interface} {target} TEXT"),
    ),
    "by-tunnel": Message(
        "The packets for {where} leave by {interface} alone, which is not set up for multicast, as VPNs are not.",
        ("sudo ip {six}route replace {group} dev INTERFACE", "multicast send -i INTERFACE {target} TEXT"),
    ),
    "foreign-source": Message(
        "The packets leave by {interface} with the source {source}, which is no address of it; hosts whose reverse path"
        " filter is on discard them.",
        ("multicast send -i {interface} {target} TEXT  # without an address of another interface",),
    ),
    "sent-other-mac": Message(
        "The frames for {group} go to another Ethernet address than that of the group, {mac}, so hosts discard them.",
        ("ip neighbour show dev {interface}", "tc filter show dev {interface} egress"),
    ),
    "sent-fragments": Message(
        "Packets for {where} are longer than a frame and leave in fragments: where one is lost the packet is, and some"
        " networks pass none.",
        ("multicast send -s {most} -f FILE {target}  # the program has to send {most} bytes at most",),
    ),
    # both ends
    "sent-elsewhere": Message(
        "The report of the sender is about {sent}, and here it was looked for {where}.",
        ("sudo multicast doctor {there} --compare FILE",),
    ),
    "sender-silent": Message(
        "Nothing left the sender while it was looked at: {reason}",
        ("sudo multicast doctor {target} --sending  # on the sender, while the program sends",),
    ),
    "sender-fault": Message(
        "What leaves the sender arrives, and its own host keeps the rest back: {reason}",
        ("sudo multicast doctor {target} --sending  # on the sender, while the program sends",),
    ),
    "ttl-spent": Message(
        "{count} left the sender with a TTL of {ttl} and none arrived: the router {gateway} is between, and passes on"
        " no packet with a TTL of 1.",
        ("multicast send -t 32 {target} TEXT  # on the sender",),
    ),
    "lost-at-router": Message(
        "{count} left the sender and none arrived: the router {gateway}, or one behind it, does not forward them.",
        ("sudo multicast doctor {target}  # on the router",
         "sudo smcroutectl add INTERFACE {source} {group} INTERFACE  # on each router, by which it comes and goes"),
    ),
    "lost-on-link": Message(
        "{count} left the sender and none arrived, with no router between: a switch between keeps them back, the hosts"
        " are on different networks, or Wi-Fi filters them.",
        ("bridge mdb show  # on a Linux bridge; a switch shows what its snooping knows of {group}",
         "sudo multicast doctor {target} -w 150  # on a host at the same switch as the sender"),
    ),
    "lost-by-size": Message(
        "Long packets are lost on the way: {long} of those in fragments arrived, and {short} of the others.",
        ("multicast send -s 1452 -f FILE {target}  # on the sender",
         "ping -M do -s 1472 {source}  # shows where the MTU is smaller"),
    ),
    "lost-by-source": Message(
        "The packets of {lost} are lost on the way ({share} arrived), and those of {good} are not.",
        ("sudo multicast doctor {target} --from {lost}",),
    ),
    "lost-in-part": Message(
        "{share} of the packets that left the sender arrived: a limit of the rate, an overloaded device, or a lossy"
        " line on the way.",
        ("tc -s qdisc show  # on each router", "sudo multicast doctor {target}  # on each router of the way"),
    ),
    "lost-by-rate": Message(
        "The sender sends {sent} packets a second and {came} arrive. The looks were at different times, so this is sure"
        " only where the rate is steady.",
        ("sudo multicast doctor {target} --compare FILE  # begun when the sender's is begun",),
    ),
    "translated": Message(
        "The packets arrive with the source {found}, and left with {source}: their address is translated on the way,"
        " and joins for {source} get nothing.",
        ("multicast listen {listened}",),
    ),
}
