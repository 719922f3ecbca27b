/* The C form of multicast.batch under libFuzzer and AddressSanitizer: what the kernel reports is made up.

   The module is compiled into this file, with recvmmsg and sendmmsg replaced. The fake kernel writes whatever the
   engine wants where the kernel may write: names, ancillary data and payload, each within the room it was given, and
   lengths, flags and counts beyond it as well. Two promises of the kernel are kept: a message count is not above the
   number asked for, and memory is not written outside the buffers. */

#define _GNU_SOURCE
#include <stddef.h>
#include <sys/socket.h>
#include <time.h>

static int fake_recvmmsg(int fd, struct mmsghdr *heads, unsigned int count, int flags, struct timespec *timeout);
static int fake_sendmmsg(int fd, struct mmsghdr *heads, unsigned int count, int flags);
#define recvmmsg fake_recvmmsg
#define sendmmsg fake_sendmmsg
#include "../multicast/_batch.c"
#undef recvmmsg
#undef sendmmsg

static const uint8_t *input;
static size_t left;

static unsigned int number(size_t size)
{
    unsigned int value = 0;
    while (size-- > 0) {
        value <<= 8;
        if (left > 0) {
            value |= *input++;
            left--;
        }
    }
    return value;
}

static void fill(void *to, size_t size)
{
    size_t have = size < left ? size : left;
    memcpy(to, input, have);
    memset((char *)to + have, 0, size - have);
    input += have;
    left -= have;
}

/* One item of ancillary data as the kernel writes it, of any length, cut where the room ends. */
static size_t item(unsigned char *to, size_t room)
{
    static const int kinds[][2] = {
        {SOL_SOCKET, SO_TIMESTAMPNS}, {IPPROTO_IP, IP_TTL},          {IPPROTO_IP, IP_PKTINFO},
        {IPPROTO_IPV6, 52},           {IPPROTO_IPV6, 50},            {IPPROTO_UDP, UDP_GRO},
        {SOL_SOCKET, 40},             {IPPROTO_IP, IP_RECVERR},
    };
    unsigned int kind = number(1);
    size_t size = kind >> 3;
    if (room < CMSG_LEN(size))
        return 0;
    struct cmsghdr head = {.cmsg_len = CMSG_LEN(size), .cmsg_level = kinds[kind & 7][0], .cmsg_type = kinds[kind & 7][1]};
    memcpy(to, &head, sizeof head);
    fill(to + CMSG_LEN(0), size);
    return CMSG_SPACE(size) < room ? CMSG_SPACE(size) : room;
}

static int fake_recvmmsg(
    int fd, struct mmsghdr *heads, unsigned int count, int flags, struct timespec *timeout)
{
    (void)fd, (void)flags, (void)timeout;
    unsigned int got = number(1);
    if (got >= 250) {
        errno = got == 250 ? EAGAIN : got == 251 ? ENOMEM : got == 252 ? ECONNREFUSED : EBADF;
        return -1;
    }
    if (got > count)
        got = count;
    for (unsigned int i = 0; i < got; i++) {
        struct msghdr *head = &heads[i].msg_hdr;
        unsigned int shape = number(1);
        size_t room = head->msg_iov->iov_len;
        /* The slot itself is written in full, as far as the kernel was told it may be. */
        size_t written = number(2) % (room + 1);
        memset(head->msg_iov->iov_base, (int)shape, written);
        heads[i].msg_len = shape & 1 ? (unsigned int)written : number(4);
        head->msg_flags = shape & 2 ? MSG_TRUNC : 0;
        if (shape & 4) {
            struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = (in_port_t)number(1)};
            name.sin_addr.s_addr = number(1);
            memcpy(head->msg_name, &name, sizeof name);
            head->msg_namelen = sizeof name;
        } else {
            fill(head->msg_name, head->msg_namelen);
            if (shape & 8)
                ((struct sockaddr_in6 *)head->msg_name)->sin6_family = AF_INET6;
            head->msg_namelen = shape & 16 ? number(1) : head->msg_namelen; /* it reports what there was, not what fits */
        }
        if (head->msg_control != NULL) {
            size_t used = 0, have = head->msg_controllen;
            if (shape & 32) { /* nonsense */
                used = number(1) % (have + 1);
                fill(head->msg_control, used);
            } else {
                for (unsigned int items = number(1) % 6; items > 0; items--)
                    used += item((unsigned char *)head->msg_control + used, have - used);
            }
            head->msg_controllen = used;
        }
    }
    return (int)got;
}

static int fake_sendmmsg(int fd, struct mmsghdr *heads, unsigned int count, int flags)
{
    (void)fd, (void)flags;
    size_t total = 0;
    for (unsigned int i = 0; i < count; i++) {
        struct msghdr *head = &heads[i].msg_hdr;
        if (head->msg_iovlen > 1 && head->msg_controllen < CMSG_LEN(sizeof(uint16_t)))
            abort(); /* a burst without its size is one long packet */
        for (size_t k = 0; k < head->msg_iovlen; k++)
            for (size_t at = 0; at < head->msg_iov[k].iov_len; at++)
                total += ((unsigned char *)head->msg_iov[k].iov_base)[at];
    }
    unsigned int taken = number(1);
    if (taken >= 240) {
        static const int errors[] = {EAGAIN, EINVAL, EIO, EMSGSIZE, ENOBUFS, EPERM, ENOPROTOOPT, EOPNOTSUPP};
        errno = errors[taken & 7];
        return -1;
    }
    (void)total;
    return (int)(taken < count ? taken : count);
}

static PyObject *module, *fake_socket;

const char *__asan_default_options(void)
{
    /* What the interpreter keeps to its end is no leak; growth is watched by -rss_limit_mb and the tests. */
    return "detect_leaks=0:allocator_may_return_null=1";
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    setenv("PYTHONMALLOC", "malloc", 1); /* so that each object has an allocation, and its ends are watched */
    PyImport_AppendInittab("_batch", PyInit__batch);
    Py_InitializeEx(0);
    module = PyImport_ImportModule("_batch");
    PyObject *names = PyDict_New();
    PyDict_SetItemString(names, "__builtins__", PyImport_ImportModule("builtins"));
    PyObject *code = Py_CompileString(
        "class Fake:\n    def fileno(self): return 0\nfake = Fake()\n"
        "def encode(packet, longest): raise TypeError(packet)\n",
        "fuzz", Py_file_input);
    if (module == NULL || code == NULL || PyEval_EvalCode(code, names, names) == NULL) {
        PyErr_Print();
        abort();
    }
    fake_socket = PyDict_GetItemString(names, "fake");
    Py_XDECREF(PyObject_CallMethod(module, "use_encode", "O", PyDict_GetItemString(names, "encode")));
    return 0;
}

/* Look at everything there is to see of what was returned; each look reads memory. */
static void look(PyObject *result, Py_ssize_t mtu)
{
    PyObject *packets = PyTuple_GetItem(result, 0), *addresses = PyTuple_GetItem(result, 1);
    static const char *names[] = {"group", "interface", "ttl", "timestamp", "truncated", "host", "port"};
    if (PyList_Size(packets) != PyList_Size(addresses))
        abort();
    for (Py_ssize_t i = 0; i < PyList_Size(packets); i++) {
        PyObject *packet = PyList_GetItem(packets, i), *address = PyList_GetItem(addresses, i);
        if (!PyBytes_CheckExact(packet) || PyBytes_Size(packet) > mtu)
            abort();
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            PyObject *value = PyObject_GetAttrString(address, names[k]);
            if (value == NULL)
                abort();
            Py_DECREF(value);
        }
        if (i < 4) {
            PyObject *text = PyObject_Repr(address);
            PyObject *copy = PyObject_CallMethod(address, "__reduce__", NULL);
            if (text == NULL || copy == NULL || PyObject_Hash(address) == -1)
                abort();
            Py_DECREF(text);
            Py_DECREF(copy);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = data;
    left = size;
    unsigned int how = number(1);
    int mtu = (int)number(2) + 1;
    PyObject *arguments = Py_BuildValue("(Oi)", fake_socket, mtu);
    PyObject *keywords = Py_BuildValue(
        "{s:s,s:z,s:i,s:i}", "group", "239.1.1.1", "interface", how & 8 ? "lo" : NULL, "details", how & 1, "offload",
        how >> 1 & 1);
    PyObject *type = PyObject_GetAttrString(module, "Reader");
    PyObject *reader = PyObject_Call(type, arguments, keywords);
    if (reader == NULL)
        abort();
    for (int round = 0; round < 3 && left > 0; round++) {
        PyObject *result = PyObject_CallMethod(module, "receive", "Oi", reader, how & 16 ? (int)number(1) : 64);
        if (result == NULL) {
            if (!PyErr_ExceptionMatches(PyExc_OSError))
                PyErr_Print(), abort();
            PyErr_Clear();
        } else {
            look(result, mtu);
            Py_DECREF(result);
        }
    }
    Py_DECREF(reader);
    Py_DECREF(type);
    Py_DECREF(keywords);
    Py_DECREF(arguments);
    if (how & 4) {
        PyObject *packets = PyList_New(0);
        unsigned int count = number(1), length = number(1);
        for (unsigned int i = 0; i < count; i++) {
            char text[300] = {0};
            PyObject *packet = PyBytes_FromStringAndSize(text, length + (i % 16 == 15 ? number(1) % 40 : 0));
            PyList_Append(packets, packet);
            Py_DECREF(packet);
        }
        type = PyObject_GetAttrString(module, "Writer");
        arguments = Py_BuildValue("(O(si))", fake_socket, "239.1.1.1", 5000);
        keywords = Py_BuildValue("{s:i}", "offload", how >> 5 & 1);
        PyObject *writer = PyObject_Call(type, arguments, keywords);
        if (writer == NULL)
            abort();
        long start = 0;
        while (start < (long)count && left > 0) {
            PyObject *sent = PyObject_CallMethod(module, "send", "OOl", writer, packets, start);
            if (sent == NULL) {
                if (!PyErr_ExceptionMatches(PyExc_OSError))
                    PyErr_Print(), abort();
                PyErr_Clear();
                start++;
            } else {
                long taken = PyLong_AsLong(sent);
                if (taken < 0 || taken > (long)count - start)
                    abort();
                start += taken;
                Py_DECREF(sent);
            }
        }
        Py_DECREF(writer);
        Py_DECREF(type);
        Py_DECREF(keywords);
        Py_DECREF(arguments);
        Py_DECREF(packets);
    }
    return 0;
}
