/* UDP at a fixed rate, and what arrives of it. nat.py compiles and runs it.
 *
 *     udp receive PORT                          prints how many datagrams came once an end was told or a second is silent
 *     udp send ADDRESS PORT RATE SECONDS BYTES  prints how many were sent, and the seconds it took
 *
 * Both move datagrams in batches, and the receiver's buffer is as large as root may have it, so that neither is what is measured.
 * The sender keeps its rate by the clock: what it is late it catches up with in bursts of 64 at most.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, ROOM = 2048, ENDS = 20 };

static char bytes[BATCH][ROOM];
static struct iovec parts[BATCH];
static struct mmsghdr messages[BATCH];

static void fail(const char *what) {
    fprintf(stderr, "udp: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void lay_out(size_t size) {
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){bytes[i], size};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
}

static int receive(int port) {
    int socket_ = socket(AF_INET, SOCK_DGRAM, 0), room = 64 << 20;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (socket_ < 0 || bind(socket_, (struct sockaddr *)&at, sizeof at)) fail("bind");
    if (setsockopt(socket_, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room)) fail("SO_RCVBUFFORCE");
    /* Longer for the first one. */
    struct timeval patience = {.tv_sec = 10};
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    lay_out(ROOM);
    unsigned long count = 0;
    for (int ended = 0; !ended;) {
        int n = recvmmsg(socket_, messages, BATCH, MSG_WAITFORONE, NULL);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n < 0) fail("recvmmsg");
        for (int i = 0; i < n; i++) {
            if (bytes[i][0] == 'e') ended = 1; else count++;
        }
        if (patience.tv_sec != 1) {
            patience.tv_sec = 1;
            setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        }
    }
    printf("%lu\n", count);
    return 0;
}

static int send_(const char *to, int port, double rate, double seconds, size_t size) {
    int socket_ = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (size < 1 || size > ROOM || inet_pton(AF_INET, to, &at.sin_addr) != 1) errno = EINVAL, fail("send");
    if (socket_ < 0 || connect(socket_, (struct sockaddr *)&at, sizeof at)) fail("connect");
    lay_out(size);
    double begun = now(), late;
    unsigned long sent = 0;
    while ((late = now() - begun) < seconds) {
        long due = (long)(late * rate) - (long)sent;
        if (due <= 0) {
            usleep(20);
            continue;
        }
        int n = sendmmsg(socket_, messages, due < BATCH ? due : BATCH, 0);
        if (n < 0 && errno != ENOBUFS && errno != EAGAIN) fail("sendmmsg");
        sent += n > 0 ? n : 0;
    }
    double took = now() - begun;
    /* The end comes behind all of them, more than once lest it be lost. */
    bytes[0][0] = 'e';
    for (int i = 0; i < ENDS; i++) {
        usleep(20000);
        send(socket_, bytes[0], size, 0);
    }
    printf("%lu %f\n", sent, took);
    return 0;
}

int main(int count, char **words) {
    if (count == 3 && !strcmp(words[1], "receive")) return receive(atoi(words[2]));
    if (count == 7 && !strcmp(words[1], "send"))
        return send_(words[2], atoi(words[3]), atof(words[4]), atof(words[5]), strtoul(words[6], NULL, 10));
    fprintf(stderr, "udp receive PORT | udp send ADDRESS PORT RATE SECONDS BYTES\n");
    return 2;
}
