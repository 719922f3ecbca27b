/* The C form of multicast.batch: recvmmsg, sendmmsg, segmentation offload; nothing else.

   It gives what the Python form gives, and the same tests run on both. What makes it fast:

   * One system call for up to 64 datagrams, into buffers that are used again. They belong to no listener: a call
     takes a set from a shelf and puts it back, so threads do not meet, and a thousand listeners cost one set.
   * The bytes object of the packet is all that is made for the usual packet. Addresses are found by the raw bytes
     the kernel reported: first the one this reader saw last, then in a table of fixed size, so that forged sources
     cannot fill the memory.
   * An Address is a tuple of what recvfrom returns, and behind its last item, where tuple does not look, it carries
     a Tail with the rest, as plain numbers. So one with its own time stamp is a single piece of memory, and nothing
     of it becomes a Python object until somebody asks. Making the module fails, and the Python form serves, should
     some later Python lay out its tuples in a way that this does not fit (see self_check).

   Written against the limited API of 3.11. The lock is released around the system calls and nowhere else. Sizes:
   a slot is never shorter than the length given to the kernel with it, and what the kernel reports is checked
   against the slot before a byte of it is read. */

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

/* From Linux' include/uapi/linux/udp.h and asm-generic/socket.h; old C libraries lack them. */
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SO_TIMESTAMPNS
#define SO_TIMESTAMPNS 35
#endif

enum {
    FORM = 4,            /* raised, here and in batch.py, whenever what one asks of the other changes */
    LIMIT = 64,          /* datagrams in one system call */
    LONGEST = 65535,     /* bytes of the longest datagram, and of the longest burst that the kernel joins */
    SEGMENTS = 64,       /* datagrams in one burst sent: older kernels take no more (UDP_MAX_SEGMENTS) */
    BURST = 65487,       /* bytes in one burst sent, so that it fits either family with all its headers */
    PARTS = 1024,        /* packets looked at in one call of send (and UIO_MAXIOV) */
    ADDRESSES = 4096,    /* places in the table of addresses; a power of two */
    NAMES = 2,           /* interface names that a reader remembers; a power of two */
    NAME_SECONDS = 1,    /* ... and for how long: an index is not given twice, but a name may change */
    RAW = sizeof(struct sockaddr_in6),
    /* Room for packet info, TTL, traffic class, time and segment size, each with its header (cmsg(3)). */
    CONTROL = CMSG_SPACE(sizeof(struct in6_pktinfo)) + 3 * CMSG_SPACE(sizeof(int)) + CMSG_SPACE(2 * sizeof(long)),
    /* Slots begin on different lines of the cache: at multiples of a page they would all claim the same few. */
    LINE = 64,
    SLOTS_SIZE = LIMIT * (LONGEST + 1 + LINE),
};

/* -- what a module has -------------------------------------------------------------------------------------------- */

/* Everything one receiving call needs; the kernel writes to it. */
typedef struct Scratch {
    struct Scratch *next;
    size_t stride; /* from slot to slot */
    size_t length; /* of a slot, as the kernel knows it */
    size_t control; /* bytes of ancillary data asked for */
    struct mmsghdr heads[LIMIT];
    struct iovec parts[LIMIT];
    struct sockaddr_in6 names[LIMIT];
    union {
        struct cmsghdr aligned;
        unsigned char bytes[CONTROL];
    } controls[LIMIT];
    unsigned char slots[]; /* SLOTS_SIZE; memory the system gives out page by page, when a slot is first written */
} Scratch;

/* The same for sending. */
typedef struct Outgoing {
    struct Outgoing *next;
    struct mmsghdr heads[LIMIT];
    int packets[LIMIT]; /* how many are in each message */
    struct iovec parts[PARTS];
    PyObject *held[PARTS];
    union {
        struct cmsghdr aligned;
        unsigned char bytes[CMSG_SPACE(sizeof(uint16_t))];
    } controls[LIMIT];
} Outgoing;

/* A place in the table of addresses. Group and interface are compared by identity: a listener's own are one object. */
typedef struct {
    PyObject *address;
    PyObject *group;
    PyObject *interface;
    socklen_t length;
    unsigned char raw[RAW];
} Place;

typedef struct {
    PyTypeObject *address_type;
    PyTypeObject *reader_type;
    PyTypeObject *writer_type;
    PyObject *encode;
    PyObject *fileno;
    newfunc new_tuple;
    Place *places;
    Scratch *scratches;
    Outgoing *outgoings;
} State;

static struct PyModuleDef definition;

static State *state_of(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

/* -- Address ------------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject *group;     /* owned, or NULL for None */
    PyObject *interface; /* the same */
    int64_t timestamp;
    int32_t ttl; /* -1 for None */
    char has_timestamp;
    char truncated;
    signed char dscp; /* -1 for None */
} Tail;

enum { TAIL_ITEMS = (sizeof(Tail) + sizeof(PyObject *) - 1) / sizeof(PyObject *) };

/* Where tuple keeps its items; the same in every interpreter of a process. */
static Py_ssize_t items_offset;

static PyObject **items_of(PyObject *address)
{
    return (PyObject **)((char *)address + items_offset);
}

static Tail *tail_of(PyObject *address)
{
    return (Tail *)(items_of(address) + Py_SIZE(address));
}

/* tuple's own constructor calls this for the memory of a tuple of `count` items. */
static PyObject *address_alloc(PyTypeObject *type, Py_ssize_t count)
{
    PyObject *self = PyType_GenericAlloc(type, count + TAIL_ITEMS);
    if (self != NULL) {
        Py_SET_SIZE((PyVarObject *)self, count);
        tail_of(self)->ttl = tail_of(self)->dscp = -1;
    }
    return self;
}

static void address_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject **items = items_of(self);
    Tail *tail = tail_of(self);
    Py_ssize_t count = Py_SIZE(self);
    PyObject_GC_UnTrack(self);
    for (Py_ssize_t i = 0; i < count; i++)
        Py_XDECREF(items[i]);
    Py_XDECREF(tail->group);
    Py_XDECREF(tail->interface);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static int address_traverse(PyObject *self, visitproc visit, void *arg)
{
    PyObject **items = items_of(self);
    Tail *tail = tail_of(self);
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++)
        Py_VISIT(items[i]);
    Py_VISIT(tail->group);
    Py_VISIT(tail->interface);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

/* An address of the items of `sockaddr`, with no more known. */
static PyObject *make_address(State *state, PyTypeObject *type, PyObject *sockaddr)
{
    PyObject *arguments = PyTuple_Pack(1, sockaddr);
    if (arguments == NULL)
        return NULL;
    PyObject *self = state->new_tuple(type, arguments, NULL);
    Py_DECREF(arguments);
    return self;
}

static PyObject *owned(PyObject *object)
{
    if (object == NULL || object == Py_None)
        return NULL;
    Py_INCREF(object);
    return object;
}

/* Set `number` to what `object` is, from 0 to `most`, unless it is None; return 0 with an exception otherwise. */
static int small_number(const char *name, PyObject *object, long most, long *number)
{
    if (object == Py_None)
        return 1;
    *number = PyLong_AsLong(object);
    if (*number == -1 && PyErr_Occurred())
        return 0;
    if (*number < 0 || *number > most) {
        PyErr_Format(PyExc_ValueError, "%s must be None or a number from 0 to %ld, not %ld", name, most, *number);
        return 0;
    }
    return 1;
}

static PyObject *address_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sockaddr", "group", "interface", "ttl", "timestamp", "truncated", "dscp", NULL};
    PyObject *sockaddr, *group = Py_None, *interface = Py_None, *ttl = Py_None, *timestamp = Py_None;
    PyObject *dscp = Py_None;
    int truncated = 0;
    long hops = -1, code_point = -1;
    long long nanoseconds = 0;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O|OOOOpO:Address", names, &sockaddr, &group, &interface, &ttl, &timestamp, &truncated, &dscp))
        return NULL;
    if (!small_number("ttl", ttl, 255, &hops) || !small_number("dscp", dscp, 63, &code_point))
        return NULL;
    if (timestamp != Py_None) {
        nanoseconds = PyLong_AsLongLong(timestamp);
        if (nanoseconds == -1 && PyErr_Occurred())
            return NULL;
    }
    PyObject *self = make_address(state_of(type), type, sockaddr);
    if (self == NULL)
        return NULL;
    Tail *tail = tail_of(self);
    tail->group = owned(group);
    tail->interface = owned(interface);
    tail->ttl = (int32_t)hops;
    tail->has_timestamp = timestamp != Py_None;
    tail->timestamp = nanoseconds;
    tail->truncated = (char)truncated;
    tail->dscp = (signed char)code_point;
    return self;
}

/* A copy of `model` with a tail of its own, in which nothing is known. */
static PyObject *clone(PyObject *model)
{
    PyTypeObject *type = Py_TYPE(model);
    Py_ssize_t count = Py_SIZE(model);
    PyObject *self = (PyObject *)PyObject_GC_NewVar(PyVarObject, type, count + TAIL_ITEMS);
    if (self == NULL)
        return NULL;
    Py_SET_SIZE((PyVarObject *)self, count);
    /* Whatever tuple keeps before its items (3.14 has its hash there) belongs to the items, so it is copied too. */
    size_t before = sizeof(PyVarObject);
    memcpy((char *)self + before, (char *)model + before, (size_t)items_offset - before);
    PyObject **from = items_of(model), **to = items_of(self);
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(from[i]);
        to[i] = from[i];
    }
    Tail *tail = tail_of(self);
    memset(tail, 0, sizeof *tail);
    tail->ttl = tail->dscp = -1;
    /* Not tracked by the collector: its items are texts and numbers, which cannot form a cycle. */
    return self;
}

static PyObject *or_none(PyObject *object)
{
    if (object == NULL)
        object = Py_None;
    Py_INCREF(object);
    return object;
}

static PyObject *address_group(PyObject *self, void *Py_UNUSED(closure))
{
    return or_none(tail_of(self)->group);
}

static PyObject *address_interface(PyObject *self, void *Py_UNUSED(closure))
{
    return or_none(tail_of(self)->interface);
}

static PyObject *address_ttl(PyObject *self, void *Py_UNUSED(closure))
{
    long ttl = tail_of(self)->ttl;
    return ttl < 0 ? or_none(NULL) : PyLong_FromLong(ttl);
}

static PyObject *address_dscp(PyObject *self, void *Py_UNUSED(closure))
{
    long dscp = tail_of(self)->dscp;
    return dscp < 0 ? or_none(NULL) : PyLong_FromLong(dscp);
}

static PyObject *address_timestamp(PyObject *self, void *Py_UNUSED(closure))
{
    Tail *tail = tail_of(self);
    return tail->has_timestamp ? PyLong_FromLongLong(tail->timestamp) : or_none(NULL);
}

static PyObject *address_truncated(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(tail_of(self)->truncated);
}

static PyObject *address_item(PyObject *self, void *closure)
{
    return PySequence_GetItem(self, (Py_ssize_t)(intptr_t)closure);
}

static PyObject *address_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *result = NULL;
    PyObject *plain = PyTuple_GetSlice(self, 0, Py_SIZE(self));
    PyObject *ttl = address_ttl(self, NULL);
    PyObject *timestamp = address_timestamp(self, NULL);
    PyObject *dscp = address_dscp(self, NULL);
    Tail *tail = tail_of(self);
    if (plain != NULL && ttl != NULL && timestamp != NULL && dscp != NULL)
        result = Py_BuildValue(
            "O(OOOOOOO)",
            (PyObject *)Py_TYPE(self),
            plain,
            tail->group != NULL ? tail->group : Py_None,
            tail->interface != NULL ? tail->interface : Py_None,
            ttl,
            timestamp,
            tail->truncated ? Py_True : Py_False,
            dscp);
    Py_XDECREF(plain);
    Py_XDECREF(ttl);
    Py_XDECREF(timestamp);
    Py_XDECREF(dscp);
    return result;
}

static PyGetSetDef address_getset[] = {
    {"group", address_group, NULL, "The address the packet was sent to, as text.", NULL},
    {"interface", address_interface, NULL, "The name of the interface it arrived on.", NULL},
    {"ttl", address_ttl, NULL, "Its TTL or hop limit on arrival.", NULL},
    {"dscp", address_dscp, NULL, "Its differentiated services code point, 0 to 63 (RFC 2474).", NULL},
    {"timestamp", address_timestamp, NULL, "When the kernel received it, in integer nanoseconds since 1970.", NULL},
    {"truncated", address_truncated, NULL, "Whether it was longer than the listener's `mtu` and has been cut.", NULL},
    {"host", address_item, NULL, "The address of the sender, as text.", (void *)0},
    {"port", address_item, NULL, "The port of the sender.", (void *)1},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef address_methods[] = {
    {"__reduce__", address_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot address_slots[] = {
    {Py_tp_doc,
     "Where a packet came from, and what else is known of it.\n\n"
     "A tuple equal to the one `socket.recvfrom` returns: host and port, for IPv6 flow label and scope as well.\n"
     "Attributes that the kernel was not asked for are None; see the argument `details` of the listeners."},
    {Py_tp_new, address_new},
    {Py_tp_alloc, address_alloc},
    {Py_tp_dealloc, address_dealloc},
    {Py_tp_traverse, address_traverse},
    {Py_tp_getset, address_getset},
    {Py_tp_methods, address_methods},
    {0, NULL},
};

static PyType_Spec address_spec = {
    .name = "multicast.batch.Address",
    .basicsize = 0, /* that of tuple, and so is the size of an item */
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = address_slots,
};

/* Whether the memory of an address is laid out as this file believes. */
static int self_check(State *state)
{
    int good = 0;
    PyObject *copy = NULL;
    PyObject *plain = Py_BuildValue("(si)", "192.0.2.1", 4242);
    PyObject *model = plain == NULL ? NULL : make_address(state, state->address_type, plain);
    if (model == NULL)
        goto done;
    Py_hash_t hash = PyObject_Hash(plain);
    copy = clone(model);
    if (copy == NULL || hash == -1)
        goto done;
    good = items_offset >= (Py_ssize_t)sizeof(PyVarObject) && PyTuple_Size(copy) == 2
           && items_of(copy)[0] == PyTuple_GetItem(plain, 0) && items_of(copy)[1] == PyTuple_GetItem(plain, 1)
           && PyTuple_GetItem(copy, 1) == PyTuple_GetItem(plain, 1) && PyObject_Hash(model) == hash
           && PyObject_Hash(copy) == hash && PyObject_RichCompareBool(copy, plain, Py_EQ) == 1;
    if (!good && !PyErr_Occurred())
        PyErr_SetString(PyExc_ImportError, "the tuples of this Python are of a shape that multicast._batch does not know");
done:
    Py_XDECREF(copy);
    Py_XDECREF(model);
    Py_XDECREF(plain);
    return good ? 0 : -1;
}

/* The tuple that recvfrom would return for what the kernel wrote. */
static PyObject *plain_sockaddr(const struct sockaddr_in6 *name, socklen_t length)
{
    char text[INET6_ADDRSTRLEN];
    if (length >= sizeof(struct sockaddr_in) && name->sin6_family == AF_INET) {
        const struct sockaddr_in *four = (const struct sockaddr_in *)name;
        inet_ntop(AF_INET, &four->sin_addr, text, sizeof text);
        return Py_BuildValue("(si)", text, (int)ntohs(four->sin_port));
    }
    if (length >= sizeof(struct sockaddr_in6) && name->sin6_family == AF_INET6) {
        inet_ntop(AF_INET6, &name->sin6_addr, text, sizeof text);
        return Py_BuildValue(
            "(siII)",
            text,
            (int)ntohs(name->sin6_port),
            (unsigned int)ntohl(name->sin6_flowinfo),
            (unsigned int)name->sin6_scope_id);
    }
    errno = EAFNOSUPPORT;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* -- Reader and Writer -------------------------------------------------------------------------------------------- */

typedef struct {
    unsigned int index;
    time_t until;
    PyObject *text;
} Name;

typedef struct {
    PyObject_HEAD
    PyObject *socket;
    PyObject *group;
    PyObject *interface;
    int mtu;
    char details;
    char offload;
    int slots; /* how many datagrams to read at once; fewer while they come in bursts */
    unsigned long long packets;
    unsigned long long bytes;
    unsigned long long truncated;
    /* The address of the packet before, which is most often that of the next. */
    PyObject *last;
    socklen_t last_length;
    unsigned char last_raw[RAW];
    /* The address of all packets read last; NULL where they had several. */
    PyObject *origin;
    /* What was read last: the two lists, and what is left of the packets; and that with the addresses, by a caller. */
    PyObject *batch;
    PyObject *left;
    PyObject *unread;
    /* Datagrams that were read, and that memory was not enough to make packets of. */
    Scratch *kept;
    int unmade;
    /* The destination of the packet before; only with details. */
    PyObject *destination;
    int destination_length;
    unsigned char destination_raw[16];
    Name names[NAMES];
} Reader;

typedef struct {
    PyObject_HEAD
    PyObject *socket;
    PyObject *sockaddr;
    unsigned long long packets;
    unsigned long long bytes;
    char offload;
    socklen_t length;
    struct sockaddr_in6 raw;
} Writer;

/* Make of two lists what was read last; -1 with an exception, and nothing changed, where memory is not enough. */
static int keep(Reader *reader, PyObject *packets, PyObject *addresses)
{
    PyObject *batch = PyTuple_Pack(2, packets, addresses), *left = PyObject_GetIter(packets);
    if (batch == NULL || left == NULL) {
        Py_XDECREF(batch);
        Py_XDECREF(left);
        return -1;
    }
    PyObject *before[] = {reader->batch, reader->left, reader->unread};
    reader->batch = batch;
    reader->left = left;
    reader->unread = NULL;
    for (int i = 0; i < 3; i++)
        Py_XDECREF(before[i]);
    return 0;
}

static int reader_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"socket", "mtu", "group", "interface", "details", "offload", NULL};
    Reader *self = (Reader *)object;
    PyObject *socket, *group = Py_None, *interface = Py_None;
    Py_ssize_t mtu;
    int details = 0, offload = 0;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "On|$OOpp:Reader", names, &socket, &mtu, &group, &interface, &details, &offload))
        return -1;
    if (self->socket != NULL) {
        PyErr_SetString(PyExc_TypeError, "a Reader is set up once");
        return -1;
    }
    if (mtu < 1) {
        PyErr_Format(PyExc_ValueError, "mtu must be a number of bytes, 1 or more, not %zd", mtu);
        return -1;
    }
    Py_INCREF(socket);
    self->socket = socket;
    self->group = owned(group);
    self->interface = owned(interface);
    self->mtu = mtu < LONGEST ? (int)mtu : LONGEST;
    self->details = (char)details;
    self->offload = (char)offload;
    self->slots = LIMIT;
    PyObject *packets = PyList_New(0), *addresses = PyList_New(0);
    int failed = packets == NULL || addresses == NULL || keep(self, packets, addresses) < 0;
    Py_XDECREF(packets);
    Py_XDECREF(addresses);
    return failed ? -1 : 0;
}

static void reader_dealloc(PyObject *object)
{
    Reader *self = (Reader *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->socket);
    Py_XDECREF(self->group);
    Py_XDECREF(self->interface);
    Py_XDECREF(self->last);
    Py_XDECREF(self->origin);
    Py_XDECREF(self->batch);
    Py_XDECREF(self->left);
    Py_XDECREF(self->unread);
    free(self->kept);
    Py_XDECREF(self->destination);
    for (int i = 0; i < NAMES; i++)
        Py_XDECREF(self->names[i].text);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyMemberDef reader_members[] = {
    {"socket", T_OBJECT, offsetof(Reader, socket), READONLY, NULL},
    {"group", T_OBJECT, offsetof(Reader, group), READONLY, NULL},
    {"interface", T_OBJECT, offsetof(Reader, interface), READONLY, NULL},
    {"mtu", T_INT, offsetof(Reader, mtu), READONLY, NULL},
    {"details", T_BOOL, offsetof(Reader, details), READONLY, NULL},
    {"offload", T_BOOL, offsetof(Reader, offload), 0, NULL},
    {"origin", T_OBJECT, offsetof(Reader, origin), READONLY, NULL},
    {"batch", T_OBJECT, offsetof(Reader, batch), 0, NULL},
    {"left", T_OBJECT, offsetof(Reader, left), 0, NULL},
    {"unread", T_OBJECT, offsetof(Reader, unread), 0, NULL},
    {"unmade", T_INT, offsetof(Reader, unmade), READONLY, NULL},
    {"packets", T_ULONGLONG, offsetof(Reader, packets), READONLY, NULL},
    {"bytes", T_ULONGLONG, offsetof(Reader, bytes), READONLY, NULL},
    {"truncated", T_ULONGLONG, offsetof(Reader, truncated), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "A receiving socket as `receive` needs to know it, and what was counted there."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, reader_init},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_members, reader_members},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "multicast.batch.Reader",
    .basicsize = sizeof(Reader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

static int writer_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"socket", "sockaddr", "offload", NULL};
    Writer *self = (Writer *)object;
    PyObject *socket, *sockaddr;
    const char *host;
    int port, offload = 0;
    unsigned int flow = 0, scope = 0;
    struct in_addr four;
    struct in6_addr six;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO!|$p:Writer", names, &socket, &PyTuple_Type, &sockaddr, &offload))
        return -1;
    if (!PyArg_ParseTuple(sockaddr, "si|II;an address is host and port, for IPv6 flow label and scope too", &host, &port,
                          &flow, &scope))
        return -1;
    if (self->socket != NULL) {
        PyErr_SetString(PyExc_TypeError, "a Writer is set up once");
        return -1;
    }
    if (port < 0 || port > 65535) {
        PyErr_Format(PyExc_OverflowError, "port must be a number from 0 to 65535, not %d", port);
        return -1;
    }
    if (inet_pton(AF_INET, host, &four) == 1) {
        struct sockaddr_in *raw = (struct sockaddr_in *)&self->raw;
        raw->sin_family = AF_INET;
        raw->sin_port = htons((uint16_t)port);
        raw->sin_addr = four;
        self->length = sizeof *raw;
    } else if (inet_pton(AF_INET6, host, &six) == 1) {
        self->raw.sin6_family = AF_INET6;
        self->raw.sin6_port = htons((uint16_t)port);
        self->raw.sin6_addr = six;
        self->raw.sin6_flowinfo = htonl(flow);
        self->raw.sin6_scope_id = scope;
        self->length = sizeof self->raw;
    } else {
        PyErr_Format(PyExc_ValueError, "%R is not an IP address", PyTuple_GetItem(sockaddr, 0));
        return -1;
    }
    Py_INCREF(socket);
    self->socket = socket;
    Py_INCREF(sockaddr);
    self->sockaddr = sockaddr;
    self->offload = (char)offload;
    return 0;
}

static void writer_dealloc(PyObject *object)
{
    Writer *self = (Writer *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->socket);
    Py_XDECREF(self->sockaddr);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyMemberDef writer_members[] = {
    {"socket", T_OBJECT, offsetof(Writer, socket), READONLY, NULL},
    {"sockaddr", T_OBJECT, offsetof(Writer, sockaddr), READONLY, NULL},
    {"offload", T_BOOL, offsetof(Writer, offload), 0, NULL},
    {"packets", T_ULONGLONG, offsetof(Writer, packets), READONLY, NULL},
    {"bytes", T_ULONGLONG, offsetof(Writer, bytes), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_doc, "A sending socket and the address its packets go to, as `send` needs to know them."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, writer_init},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_members, writer_members},
    {0, NULL},
};

static PyType_Spec writer_spec = {
    .name = "multicast.batch.Writer",
    .basicsize = sizeof(Writer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = writer_slots,
};

/* The descriptor of a socket object, -1 when it is closed; -2 with an exception set. Asked each time, as a number
   that was remembered may be somebody else's by now. */
static int descriptor(State *state, PyObject *socket)
{
    PyObject *number = PyObject_CallMethodObjArgs(socket, state->fileno, NULL);
    if (number == NULL)
        return -2;
    long fd = PyLong_AsLong(number);
    Py_DECREF(number);
    if (fd == -1 && PyErr_Occurred())
        return -2;
    if (fd < -1 || fd > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "fileno() of the socket gave a number that is no descriptor");
        return -2;
    }
    return (int)fd;
}

/* -- receiving ---------------------------------------------------------------------------------------------------- */

static Scratch *take_scratch(State *state)
{
    Scratch *scratch = state->scratches;
    if (scratch != NULL) {
        state->scratches = scratch->next;
        return scratch;
    }
    scratch = malloc(sizeof *scratch + SLOTS_SIZE);
    if (scratch == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memset(scratch, 0, sizeof *scratch);
    for (int i = 0; i < LIMIT; i++) {
        struct msghdr *head = &scratch->heads[i].msg_hdr;
        head->msg_name = &scratch->names[i];
        head->msg_namelen = sizeof scratch->names[i];
        head->msg_iov = &scratch->parts[i];
        head->msg_iovlen = 1;
    }
    return scratch;
}

/* Lay out the slots as this reader needs them; mostly they are so already. */
static void arrange(Scratch *scratch, size_t length, size_t control)
{
    if (scratch->length != length) {
        scratch->length = length;
        scratch->stride = (length + LINE - 1) / LINE * LINE + LINE;
        if (scratch->stride > LONGEST + 1 + LINE)
            scratch->stride = LONGEST + 1 + LINE;
        for (size_t i = 0; i < LIMIT; i++) {
            scratch->parts[i].iov_base = scratch->slots + i * scratch->stride;
            scratch->parts[i].iov_len = length;
        }
    }
    if (scratch->control != control) {
        scratch->control = control;
        for (int i = 0; i < LIMIT; i++) {
            scratch->heads[i].msg_hdr.msg_control = control ? scratch->controls[i].bytes : NULL;
            scratch->heads[i].msg_hdr.msg_controllen = control;
        }
    }
}

/* Return (borrowed) the address for what the kernel reported, from the table where it is there. */
static PyObject *find_address(State *state, Reader *reader, const struct sockaddr_in6 *name, socklen_t length)
{
    if (length > RAW)
        length = RAW;
    if (reader->last != NULL && reader->last_length == length && memcmp(reader->last_raw, name, length) == 0)
        return reader->last;
    if (state->places == NULL) {
        state->places = calloc(ADDRESSES, sizeof *state->places);
        if (state->places == NULL)
            return PyErr_NoMemory();
    }
    uint64_t hash = (uint64_t)(uintptr_t)reader->group;
    uint32_t word;
    for (socklen_t i = 0; i + sizeof word <= length; i += sizeof word) {
        memcpy(&word, (const unsigned char *)name + i, sizeof word);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
    }
    Place *place = &state->places[hash >> 8 & (ADDRESSES - 1)];
    if (place->address == NULL || place->length != length || place->group != reader->group
        || place->interface != reader->interface || memcmp(place->raw, name, length) != 0) {
        PyObject *plain = plain_sockaddr(name, length);
        PyObject *address = plain == NULL ? NULL : make_address(state, state->address_type, plain);
        Py_XDECREF(plain);
        if (address == NULL)
            return NULL;
        Tail *tail = tail_of(address);
        tail->group = owned(reader->group);
        tail->interface = owned(reader->interface);
        PyObject *before = place->address;
        PyObject *before_group = place->group, *before_interface = place->interface;
        place->address = address;
        place->group = owned(reader->group);
        place->interface = owned(reader->interface);
        place->length = length;
        memcpy(place->raw, name, length);
        Py_XDECREF(before);
        Py_XDECREF(before_group);
        Py_XDECREF(before_interface);
    }
    Py_INCREF(place->address);
    PyObject *before = reader->last;
    reader->last = place->address;
    reader->last_length = length;
    memcpy(reader->last_raw, name, length);
    Py_XDECREF(before);
    return reader->last;
}

/* What came with a datagram. */
typedef struct {
    int segment; /* size of the datagrams a burst is made of, 0 for a single one */
    int ttl;
    int dscp;
    int index;
    int destination_length;
    const unsigned char *destination;
    int has_timestamp;
    int64_t timestamp;
} Extra;

static void read_control(struct msghdr *head, Extra *extra)
{
    memset(extra, 0, sizeof *extra);
    extra->ttl = extra->dscp = -1;
    for (struct cmsghdr *item = CMSG_FIRSTHDR(head); item != NULL; item = CMSG_NXTHDR(head, item)) {
        const unsigned char *data = CMSG_DATA(item);
        if (item->cmsg_len < CMSG_LEN(0))
            break;
        size_t size = item->cmsg_len - CMSG_LEN(0);
        int number;
        switch (item->cmsg_level) {
        case SOL_SOCKET:
            if (item->cmsg_type == SO_TIMESTAMPNS && size >= 2 * sizeof(long)) {
                long time[2];
                memcpy(time, data, sizeof time);
                /* Unsigned, as the sum of forged numbers may overflow. */
                extra->timestamp = (int64_t)((uint64_t)time[0] * 1000000000u + (uint64_t)time[1]);
                extra->has_timestamp = 1;
            }
            break;
        case IPPROTO_IP:
            if (item->cmsg_type == IP_TTL && size >= sizeof number) {
                memcpy(&number, data, sizeof number);
                extra->ttl = number;
            } else if (item->cmsg_type == IP_TOS && size >= 1) {
                extra->dscp = data[0] >> 2;
            } else if (item->cmsg_type == IP_PKTINFO && size >= sizeof(struct in_pktinfo)) {
                memcpy(&number, data + offsetof(struct in_pktinfo, ipi_ifindex), sizeof number);
                extra->index = number;
                extra->destination = data + offsetof(struct in_pktinfo, ipi_addr);
                extra->destination_length = sizeof(struct in_addr);
            }
            break;
        case IPPROTO_IPV6:
            if (item->cmsg_type == IPV6_HOPLIMIT && size >= sizeof number) {
                memcpy(&number, data, sizeof number);
                extra->ttl = number;
            } else if (item->cmsg_type == IPV6_TCLASS && size >= sizeof number) {
                memcpy(&number, data, sizeof number);
                extra->dscp = number >> 2 & 63;
            } else if (item->cmsg_type == IPV6_PKTINFO && size >= sizeof(struct in6_pktinfo)) {
                memcpy(&number, data + offsetof(struct in6_pktinfo, ipi6_ifindex), sizeof number);
                extra->index = number;
                extra->destination = data + offsetof(struct in6_pktinfo, ipi6_addr);
                extra->destination_length = sizeof(struct in6_addr);
            }
            break;
        case IPPROTO_UDP:
            if (item->cmsg_type == UDP_GRO && size >= sizeof number) {
                memcpy(&number, data, sizeof number);
                extra->segment = number;
            }
            break;
        }
    }
}

/* Return (borrowed) the text of a destination, or NULL with an exception. */
static PyObject *destination_text(Reader *reader, const Extra *extra)
{
    if (reader->destination == NULL || reader->destination_length != extra->destination_length
        || memcmp(reader->destination_raw, extra->destination, (size_t)extra->destination_length) != 0) {
        char text[INET6_ADDRSTRLEN];
        inet_ntop(extra->destination_length == 4 ? AF_INET : AF_INET6, extra->destination, text, sizeof text);
        PyObject *made = PyUnicode_FromString(text), *before = reader->destination;
        if (made == NULL)
            return NULL;
        reader->destination = made;
        reader->destination_length = extra->destination_length;
        memcpy(reader->destination_raw, extra->destination, (size_t)extra->destination_length);
        Py_XDECREF(before);
    }
    return reader->destination;
}

/* Return (borrowed) the name of an interface, as the network namespace of the socket has it; what the reader knows
   anyway when it is gone since, which may be NULL; NULL with an exception on failure. */
static PyObject *interface_name(Reader *reader, int fd, int index, time_t now)
{
    Name *name = &reader->names[(unsigned int)index & (NAMES - 1)];
    if (name->text == NULL || name->index != (unsigned int)index || name->until <= now) {
        struct ifreq request;
        memset(&request, 0, sizeof request);
        request.ifr_ifindex = index;
        if (ioctl(fd, SIOCGIFNAME, &request) < 0)
            return reader->interface;
        request.ifr_name[IFNAMSIZ - 1] = '\0';
        PyObject *made = PyUnicode_DecodeFSDefault(request.ifr_name), *before = name->text;
        if (made == NULL)
            return NULL;
        name->text = made;
        name->index = (unsigned int)index;
        name->until = now + NAME_SECONDS;
        Py_XDECREF(before);
    }
    return name->text;
}

/* Return a new address like `known`, with what the kernel said of this packet. */
static PyObject *detailed(Reader *reader, PyObject *known, const Extra *extra, int fd, time_t now)
{
    PyObject *group = reader->group, *interface = reader->interface;
    if (extra->destination != NULL) {
        group = destination_text(reader, extra);
        if (group == NULL)
            return NULL;
        interface = interface_name(reader, fd, extra->index, now);
        if (interface == NULL && PyErr_Occurred())
            return NULL;
    }
    PyObject *made = clone(known);
    if (made != NULL) {
        Tail *tail = tail_of(made);
        tail->group = owned(group);
        tail->interface = owned(interface);
        tail->ttl = extra->ttl;
        tail->dscp = (signed char)extra->dscp;
        tail->has_timestamp = (char)extra->has_timestamp;
        tail->timestamp = extra->timestamp;
    }
    return made;
}

/* Return a new address equal to `known` in all but that its packet was cut. */
static PyObject *cut(PyObject *known)
{
    PyObject *made = clone(known);
    if (made != NULL) {
        Tail *from = tail_of(known), *to = tail_of(made);
        *to = *from;
        to->group = owned(from->group);
        to->interface = owned(from->interface);
        to->truncated = 1;
    }
    return made;
}

/* What a call of receive has made so far. */
typedef struct {
    PyObject *packets;   /* lists, or NULL */
    PyObject *addresses;
    PyObject *origin; /* borrowed: the address of all packets, NULL where they have several */
    unsigned long long bytes;
    unsigned long long truncated;
} Batch;

/* Whether all datagrams are whole and of one sender, as most often they are. */
static int are_alike(const Scratch *scratch, int got)
{
    const struct mmsghdr *heads = scratch->heads;
    const struct sockaddr_in6 *names = scratch->names;
    socklen_t length = heads[0].msg_hdr.msg_namelen;
    int flags = heads[0].msg_hdr.msg_flags;
    if (length > RAW)
        return 0;
    for (int i = 1; i < got; i++) {
        flags |= heads[i].msg_hdr.msg_flags;
        if (heads[i].msg_hdr.msg_namelen != length)
            return 0;
        /* With a size known here the comparison is two instructions. */
        if (length == sizeof(struct sockaddr_in) ? memcmp(&names[i], names, sizeof(struct sockaddr_in)) != 0
                                                 : memcmp(&names[i], names, length) != 0)
            return 0;
    }
    return !(flags & MSG_TRUNC);
}

/* Make the packets and addresses of datagrams that have nothing with them: the usual case. */
static int gather(State *state, Reader *reader, Scratch *scratch, int got, Batch *batch)
{
    PyObject *packets = batch->packets = PyList_New(got);
    if (packets == NULL)
        return -1;
    if (got > 0 && are_alike(scratch, got)) {
        PyObject *one = PyList_New(1);
        PyObject *from = find_address(state, reader, &scratch->names[0], scratch->heads[0].msg_hdr.msg_namelen);
        if (one != NULL && from != NULL) {
            Py_INCREF(from);
            PyList_SetItem(one, 0, from);
            batch->addresses = PySequence_Repeat(one, got);
            batch->origin = from;
        }
        Py_XDECREF(one);
        if (batch->addresses == NULL)
            return -1;
    } else {
        batch->addresses = PyList_New(got);
        if (batch->addresses == NULL)
            return -1;
        for (int i = 0; i < got; i++) {
            struct msghdr *head = &scratch->heads[i].msg_hdr;
            PyObject *from = find_address(state, reader, &scratch->names[i], head->msg_namelen);
            if (from == NULL)
                return -1;
            if (head->msg_flags & MSG_TRUNC) {
                from = cut(from);
                batch->truncated++;
                if (from == NULL)
                    return -1;
            } else {
                Py_INCREF(from);
            }
            PyList_SetItem(batch->addresses, i, from);
        }
    }
    for (int i = 0; i < got; i++) {
        size_t size = scratch->heads[i].msg_len;
        PyObject *packet = PyBytes_FromStringAndSize(scratch->parts[i].iov_base, (Py_ssize_t)size);
        if (packet == NULL)
            return -1;
        PyList_SetItem(packets, i, packet);
        batch->bytes += size;
    }
    return 0;
}

/* The same for datagrams that may be bursts, and of which the kernel may have told more. */
static int gather_told(State *state, Reader *reader, Scratch *scratch, int got, int fd, Batch *batch)
{
    Extra extras[LIMIT];
    Py_ssize_t count = 0, place = 0;
    size_t mtu = (size_t)reader->mtu;
    time_t now = 0;
    for (int i = 0; i < got; i++) {
        size_t size = scratch->heads[i].msg_len;
        read_control(&scratch->heads[i].msg_hdr, &extras[i]);
        if (!reader->offload || extras[i].segment <= 0 || (size_t)extras[i].segment > size)
            extras[i].segment = 0;
        count += extras[i].segment > 0 ? (Py_ssize_t)(1 + (size - 1) / (size_t)extras[i].segment) : 1;
    }
    if (reader->details && got > 0) {
        struct timespec clock;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &clock);
        now = clock.tv_sec;
    }
    batch->packets = PyList_New(count);
    batch->addresses = PyList_New(count);
    if (batch->packets == NULL || batch->addresses == NULL)
        return -1;
    int alike = 1;
    for (int i = 0; i < got; i++) {
        const char *data = scratch->parts[i].iov_base;
        size_t size = scratch->heads[i].msg_len;
        size_t segment = extras[i].segment > 0 ? (size_t)extras[i].segment : size;
        struct msghdr *head = &scratch->heads[i].msg_hdr;
        size_t offset = 0;
        PyObject *address = find_address(state, reader, &scratch->names[i], head->msg_namelen);
        if (address == NULL)
            return -1;
        if (reader->details) {
            address = detailed(reader, address, &extras[i], fd, now);
            if (address == NULL)
                return -1;
        } else {
            Py_INCREF(address);
        }
        do {
            size_t length = size - offset < segment ? size - offset : segment;
            size_t kept = length < mtu ? length : mtu;
            PyObject *packet = PyBytes_FromStringAndSize(data + offset, (Py_ssize_t)kept);
            PyObject *from = address;
            if (kept < length || head->msg_flags & MSG_TRUNC) {
                from = cut(address);
                batch->truncated++;
            } else {
                Py_INCREF(from);
            }
            if (packet == NULL || from == NULL) {
                Py_XDECREF(packet);
                Py_XDECREF(from);
                Py_DECREF(address);
                return -1;
            }
            if (place == 0)
                batch->origin = from;
            else
                alike &= from == batch->origin;
            PyList_SetItem(batch->packets, place, packet);
            PyList_SetItem(batch->addresses, place, from);
            place++;
            batch->bytes += kept;
            offset += length;
        } while (offset < size);
        Py_DECREF(address);
    }
    if (!alike)
        batch->origin = NULL;
    if (reader->offload && got > 0) {
        /* A turn is about LIMIT packets, however many of them come in each datagram. */
        Py_ssize_t each = (count + got - 1) / got;
        reader->slots = (int)(each < LIMIT ? LIMIT / each : 1);
    }
    return 0;
}

static const char receive_doc[] =
    "receive(reader, limit=64)\n--\n\n"
    "Read up to `limit` waiting datagrams; return the packets and, at the same places, where they came from.\n\n"
    "Both lists are empty when nothing waits. A burst that the kernel joined (UDP_GRO) counts as one datagram and is\n"
    "returned as the packets it was made of. An `OSError` is raised only when nothing was read before it.";

static PyObject *receive(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = PyModule_GetState(module);
    PyObject *result = NULL, *before;
    Batch batch = {0};
    Scratch *scratch = NULL;
    long limit = LIMIT;
    int got = 0, error;
    if (nargs < 1 || nargs > 2 || Py_TYPE(args[0]) != state->reader_type) {
        PyErr_SetString(PyExc_TypeError, "receive takes a Reader, and at most the number of datagrams");
        return NULL;
    }
    Reader *reader = (Reader *)args[0];
    if (nargs == 2) {
        limit = PyLong_AsLong(args[1]);
        if (limit == -1 && PyErr_Occurred())
            return NULL;
    }
    if (limit > reader->slots)
        limit = reader->slots;
    if (limit < 1)
        limit = 1;
    if (reader->socket == NULL) {
        PyErr_SetString(PyExc_ValueError, "this Reader was never given a socket");
        return NULL;
    }
    int fd = descriptor(state, reader->socket);
    if (fd == -2)
        return NULL;
    int control = reader->details || reader->offload;
    if (reader->kept != NULL) {
        scratch = reader->kept;
        got = reader->unmade;
        reader->kept = NULL;
        reader->unmade = 0;
        goto make;
    }
    scratch = take_scratch(state);
    if (scratch == NULL)
        return NULL;
    /* A burst needs room for the longest datagram, or the kernel throws away what does not fit of it. */
    arrange(scratch, reader->offload ? LONGEST : (size_t)reader->mtu, control ? CONTROL : 0);
    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        got = recvmmsg(fd, scratch->heads, (unsigned int)limit, MSG_DONTWAIT, NULL);
        error = errno;
        Py_END_ALLOW_THREADS
        if (got >= 0 || error != EINTR)
            break;
        if (PyErr_CheckSignals() < 0)
            goto done;
    }
    if (got < 0) {
        got = 0;
        if (error != EAGAIN && error != EWOULDBLOCK) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            goto done;
        }
    }
make:
    for (int i = 0; i < got; i++) /* the kernel does not report more than it wrote; if it did, it is not there */
        if (scratch->heads[i].msg_len > scratch->length)
            scratch->heads[i].msg_len = (unsigned int)scratch->length;
    if ((control ? gather_told(state, reader, scratch, got, fd, &batch) : gather(state, reader, scratch, got, &batch)) < 0
        || keep(reader, batch.packets, batch.addresses) < 0) {
        if (got == 0 || !PyErr_ExceptionMatches(PyExc_MemoryError))
            goto done;
        /* It was read, so it stays the reader's: the next call makes packets of it. */
        Py_XDECREF(batch.packets);
        Py_XDECREF(batch.addresses);
        reader->kept = scratch;
        reader->unmade = got;
        return NULL;
    }
    reader->packets += (unsigned long long)PyList_Size(batch.packets);
    reader->bytes += batch.bytes;
    reader->truncated += batch.truncated;
    before = reader->origin;
    reader->origin = batch.origin;
    Py_XINCREF(batch.origin);
    Py_XDECREF(before);
    result = reader->batch;
    Py_INCREF(result);

done:
    Py_XDECREF(batch.packets);
    Py_XDECREF(batch.addresses);
    for (int i = 0; i < got; i++) {
        scratch->heads[i].msg_hdr.msg_namelen = sizeof scratch->names[i];
        scratch->heads[i].msg_hdr.msg_controllen = scratch->control;
    }
    scratch->next = state->scratches;
    state->scratches = scratch;
    return result;
}

/* -- sending ------------------------------------------------------------------------------------------------------ */

static Outgoing *take_outgoing(State *state)
{
    Outgoing *outgoing = state->outgoings;
    if (outgoing != NULL) {
        state->outgoings = outgoing->next;
        return outgoing;
    }
    outgoing = calloc(1, sizeof *outgoing);
    if (outgoing == NULL)
        PyErr_NoMemory();
    return outgoing;
}

/* Whether the path, and not the packet or the moment, may be why a burst was refused (udp(7), and Linux'
   udp_send_skb: the segment with its headers is longer than the path takes; no checksum offload; an old kernel). */
static int is_refusal(int error)
{
    return error == EINVAL || error == EIO || error == EMSGSIZE || error == ENOPROTOOPT || error == EOPNOTSUPP;
}

/* Put the first `count` packets into messages, runs of equal size into one where the writer may; return how many
   messages there are. */
static int compose(Outgoing *outgoing, Writer *writer, int count)
{
    int messages = 0;
    for (int first = 0; first < count && messages < LIMIT; messages++) {
        size_t size = outgoing->parts[first].iov_len, total = size;
        int length = 1;
        if (writer->offload && size > 0)
            while (first + length < count && length < SEGMENTS) {
                size_t next = outgoing->parts[first + length].iov_len;
                if (next == 0 || next > size || total + next > BURST)
                    break;
                total += next;
                length++;
                if (next < size) /* only the last of a burst may be shorter */
                    break;
            }
        struct msghdr *head = &outgoing->heads[messages].msg_hdr;
        memset(head, 0, sizeof *head);
        head->msg_name = &writer->raw;
        head->msg_namelen = writer->length;
        head->msg_iov = &outgoing->parts[first];
        head->msg_iovlen = (size_t)length;
        if (length > 1) {
            struct cmsghdr *item = &outgoing->controls[messages].aligned;
            uint16_t segment = (uint16_t)size;
            item->cmsg_level = IPPROTO_UDP;
            item->cmsg_type = UDP_SEGMENT;
            item->cmsg_len = CMSG_LEN(sizeof segment);
            memcpy(CMSG_DATA(item), &segment, sizeof segment);
            head->msg_control = item;
            head->msg_controllen = CMSG_SPACE(sizeof segment);
        }
        outgoing->packets[messages] = length;
        first += length;
    }
    return messages;
}

static const char send_doc[] =
    "send(writer, packets, start=0)\n--\n\n"
    "Hand `packets` from number `start` on to the kernel; return how many it took.\n\n"
    "Fewer than all means that there were more than fit in one call, that the socket's buffer is full, or that the\n"
    "next one fails: call again to learn. An `OSError` (`BlockingIOError` for a full buffer) is raised only when the\n"
    "kernel took none.";

static PyObject *send_packets(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = PyModule_GetState(module);
    PyObject *result = NULL;
    Py_ssize_t start = 0;
    int count = 0, sent = 0, error = 0;
    if (nargs < 2 || nargs > 3 || Py_TYPE(args[0]) != state->writer_type || !PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "send takes a Writer, a list of bytes, and at most the number to start at");
        return NULL;
    }
    Writer *writer = (Writer *)args[0];
    PyObject *packets = args[1];
    if (nargs == 3) {
        start = PyLong_AsSsize_t(args[2]);
        if (start == -1 && PyErr_Occurred())
            return NULL;
    }
    if (writer->socket == NULL) {
        PyErr_SetString(PyExc_ValueError, "this Writer was never given a socket");
        return NULL;
    }
    int fd = descriptor(state, writer->socket);
    if (fd == -2)
        return NULL;
    Outgoing *outgoing = take_outgoing(state);
    if (outgoing == NULL)
        return NULL;
    if (start < 0)
        start = 0;
    for (; count < PARTS && start + count < PyList_Size(packets); count++) {
        PyObject *packet = PyList_GetItem(packets, start + count);
        char *data;
        Py_ssize_t size;
        if (packet == NULL || PyBytes_AsStringAndSize(packet, &data, &size) < 0)
            goto done;
        /* Held, for the list may change while other threads run. */
        Py_INCREF(packet);
        outgoing->held[count] = packet;
        outgoing->parts[count].iov_base = data;
        outgoing->parts[count].iov_len = (size_t)size;
    }
    while (count > 0) {
        int messages = compose(outgoing, writer, count);
        int bursts = outgoing->packets[0] > 1;
        Py_BEGIN_ALLOW_THREADS
        sent = sendmmsg(fd, outgoing->heads, (unsigned int)messages, MSG_DONTWAIT);
        error = errno;
        Py_END_ALLOW_THREADS
        if (sent >= 0)
            break;
        if (bursts && is_refusal(error)) {
            writer->offload = 0; /* for good; the kernel took nothing, so nothing is sent twice */
            continue;
        }
        if (error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            goto done;
        }
        if (PyErr_CheckSignals() < 0)
            goto done;
    }
    Py_ssize_t taken = 0;
    for (int i = 0; i < sent; i++)
        taken += outgoing->packets[i];
    writer->packets += (unsigned long long)taken;
    for (Py_ssize_t i = 0; i < taken; i++)
        writer->bytes += outgoing->parts[i].iov_len;
    result = PyLong_FromSsize_t(taken);

done:
    for (int i = 0; i < count; i++)
        Py_DECREF(outgoing->held[i]);
    outgoing->next = state->outgoings;
    state->outgoings = outgoing;
    return result;
}

static const char take_doc[] =
    "take(packets, into, count, longest)\n--\n\n"
    "Append up to `count` packets from the iterator `packets` to the list `into`, as they go on the wire.\n\n"
    "A None among them ends it, and is left out; return whether one did. Raises what the iterator raises and what `encode` does; the list then holds what came before.";

static PyObject *take(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    State *state = PyModule_GetState(module);
    if (nargs != 4 || !PyIter_Check(args[0]) || !PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "take takes an iterator, a list, the number of packets and the longest size");
        return NULL;
    }
    PyObject *iterator = args[0], *into = args[1];
    Py_ssize_t count = PyLong_AsSsize_t(args[2]);
    if (count == -1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t longest = PyLong_AsSsize_t(args[3]);
    if (longest == -1 && PyErr_Occurred())
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *packet = PyIter_Next(iterator);
        if (packet == NULL) {
            if (PyErr_Occurred())
                return NULL;
            break;
        }
        if (packet == Py_None) {
            Py_DECREF(packet);
            Py_RETURN_TRUE;
        }
        if (PyUnicode_CheckExact(packet)) { /* without Python code, where a signal handler could raise */
            PyObject *text = packet;
            packet = PyUnicode_AsUTF8String(text);
            Py_DECREF(text);
            if (packet == NULL)
                return NULL;
        }
        if (!PyBytes_CheckExact(packet) || PyBytes_Size(packet) > longest) {
            PyObject *encoded = PyObject_CallFunctionObjArgs(state->encode, packet, args[3], NULL);
            Py_DECREF(packet);
            if (encoded == NULL)
                return NULL;
            packet = encoded;
        }
        int failed = PyList_Append(into, packet);
        Py_DECREF(packet);
        if (failed < 0)
            return NULL;
    }
    Py_RETURN_FALSE;
}

/* -- the module --------------------------------------------------------------------------------------------------- */

static PyObject *use_encode(PyObject *module, PyObject *encode)
{
    State *state = PyModule_GetState(module);
    PyObject *before = state->encode;
    Py_INCREF(encode);
    state->encode = encode;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, receive_doc},
    {"send", (PyCFunction)(void (*)(void))send_packets, METH_FASTCALL, send_doc},
    {"take", (PyCFunction)(void (*)(void))take, METH_FASTCALL, take_doc},
    {"use_encode", use_encode, METH_O, "use_encode(encode)\n--\n\nCall `encode` for packets that are not bytes."},
    {NULL, NULL, 0, NULL},
};

static int add_types(PyObject *module)
{
    State *state = PyModule_GetState(module);
    PyObject *basicsize = PyObject_GetAttrString((PyObject *)&PyTuple_Type, "__basicsize__");
    if (basicsize == NULL)
        return -1;
    items_offset = PyLong_AsSsize_t(basicsize);
    Py_DECREF(basicsize);
    if (items_offset < 0)
        return -1;
    state->new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    state->fileno = PyUnicode_InternFromString("fileno");
    state->address_type
        = (PyTypeObject *)PyType_FromModuleAndSpec(module, &address_spec, (PyObject *)&PyTuple_Type);
    state->reader_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    state->writer_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &writer_spec, NULL);
    if (state->new_tuple == NULL || state->fileno == NULL || state->address_type == NULL || state->reader_type == NULL
        || state->writer_type == NULL)
        return -1;
    if (PyModule_AddType(module, state->address_type) < 0 || PyModule_AddType(module, state->reader_type) < 0
        || PyModule_AddType(module, state->writer_type) < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "FORM", FORM) < 0)
        return -1;
    return self_check(state);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->address_type);
    Py_VISIT(state->reader_type);
    Py_VISIT(state->writer_type);
    Py_VISIT(state->encode);
    return 0;
}

static int clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Place *places = state->places;
    state->places = NULL;
    for (int i = 0; places != NULL && i < ADDRESSES; i++) {
        Py_XDECREF(places[i].address);
        Py_XDECREF(places[i].group);
        Py_XDECREF(places[i].interface);
    }
    free(places);
    Py_CLEAR(state->encode);
    Py_CLEAR(state->fileno);
    Py_CLEAR(state->address_type);
    Py_CLEAR(state->reader_type);
    Py_CLEAR(state->writer_type);
    return 0;
}

static void release(void *module)
{
    State *state = PyModule_GetState((PyObject *)module);
    if (state == NULL)
        return;
    clear((PyObject *)module);
    while (state->scratches != NULL) {
        Scratch *scratch = state->scratches;
        state->scratches = scratch->next;
        free(scratch);
    }
    while (state->outgoings != NULL) {
        Outgoing *outgoing = state->outgoings;
        state->outgoings = outgoing->next;
        free(outgoing);
    }
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_types},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "multicast._batch",
    .m_doc = "The C form of multicast.batch; import that.",
    .m_size = sizeof(State),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = release,
};

PyMODINIT_FUNC PyInit__batch(void)
{
    return PyModuleDef_Init(&definition);
}
