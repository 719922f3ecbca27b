/* The floor: receive with recvmmsg and throw away, as fast as C can.

   floor GROUP PORT COUNT SIZE DETAILS

   Speaks the protocol of the other peers (see peers.py): writes "ready" when it can be sent to, and for each line
   read drains COUNT packets and writes the nanoseconds that took and the packets the kernel dropped so far. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define SLOT 4096

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
    static char slots[BATCH][SLOT + 64];
    static struct sockaddr_in names[BATCH];
    static struct iovec parts[BATCH];
    static struct mmsghdr heads[BATCH];
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct ip_mreqn request = {.imr_ifindex = 0};
    int one = 1, buffer = 64 << 20;
    char line[16];

    if (argc != 4) {
        fprintf(stderr, "usage: floor GROUP PORT COUNT\n");
        return 2;
    }
    int opened = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (opened < 0)
        fail("socket");
    address.sin_port = htons((unsigned short)atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1)
        fail("group");
    request.imr_multiaddr = address.sin_addr;
    request.imr_address.s_addr = htonl(INADDR_LOOPBACK);
    if (setsockopt(opened, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) < 0)
        setsockopt(opened, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    if (bind(opened, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    if (setsockopt(opened, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request) < 0)
        fail("join");
    (void)one;
    long count = atol(argv[3]);
    for (int i = 0; i < BATCH; i++) {
        parts[i].iov_base = slots[i];
        parts[i].iov_len = SLOT;
        heads[i].msg_hdr.msg_iov = &parts[i];
        heads[i].msg_hdr.msg_iovlen = 1;
        heads[i].msg_hdr.msg_name = &names[i];
    }
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        long received = 0;
        long long start = now();
        while (received < count) {
            for (int i = 0; i < BATCH; i++)
                heads[i].msg_hdr.msg_namelen = sizeof names[i];
            int got = recvmmsg(opened, heads, BATCH, MSG_DONTWAIT, NULL);
            if (got < 0) {
                if (errno == EAGAIN)
                    break;
                fail("recvmmsg");
            }
            received += got;
        }
        long long took = now() - start;
        unsigned int memory[9] = {0};
        socklen_t length = sizeof memory;
        getsockopt(opened, SOL_SOCKET, 55 /* SO_MEMINFO */, memory, &length);
        printf("%lld %ld %u\n", took, received, memory[8]);
        fflush(stdout);
    }
    return 0;
}
