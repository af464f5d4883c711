/*
 * Sends and receives the frames of pattern.h on a network interface, through packet(7) sockets.
 *
 *   frames send IF --dst MAC [--src MAC] [--vlan VID] [--gap-us N] [--mss N] TRAFFIC
 *   frames receive IF [--vlan VID|none|any] [--timeout-ms N] TRAFFIC
 *   frames set IF gro|gso|tso|tx|rx on|off
 *   TRAFFIC: [--proto plain|tcp4|tcp6] [--seed N] --sizes A,B,... --count N
 *
 * TCP frames larger than the segment size leave as super-frames: the socket carries virtio_net_hdr (PACKET_VNET_HDR),
 * so that the device, or whatever is behind it, owes the segmentation. `receive` prints {"ready":true} when it listens
 * and its report when all has arrived or the time is over; `send` prints what it sent. Exit status: 0 done (also when
 * frames are missing: the report says so), 1 the system refused something, 2 the arguments are wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "pattern.h"

#define VNET_HEADER 10 /* struct virtio_net_hdr, without num_buffers */

static void fail(const char *what)
{
	fprintf(stderr, "frames: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void misuse(const char *why)
{
	fprintf(stderr, "frames: %s\n", why);
	exit(2);
}

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int open_socket(const char *interface, bool receiving)
{
	int one = 1, memory = 64 << 20;
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = receiving ? htons(ETH_P_ALL) : 0 };
	struct packet_mreq promiscuous = { .mr_type = PACKET_MR_PROMISC };

	if (fd < 0)
		fail("cannot open a packet socket");
	address.sll_ifindex = promiscuous.mr_ifindex = (int)if_nametoindex(interface);
	if (!address.sll_ifindex)
		fail(interface);
	if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) < 0)
		fail("PACKET_VNET_HDR");
	if (receiving) {
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &memory, sizeof(memory));
		if (setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &one, sizeof(one)) < 0 ||
		    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)) < 0 ||
		    setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof(promiscuous)) < 0)
			fail("cannot prepare the packet socket");
	}
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("bind");
	return fd;
}

static void read_mac(uint8_t *mac, const char *text)
{
	if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6)
		misuse("a MAC address looks like 02:00:00:00:00:01");
}

static void own_mac(uint8_t *mac, const char *interface)
{
	struct ifreq request = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
	if (ioctl(fd, SIOCGIFHWADDR, &request) < 0)
		fail(interface);
	memcpy(mac, request.ifr_hwaddr.sa_data, 6);
	close(fd);
}

static int send_frames(const char *interface, const struct traffic *t, const uint8_t *dst, const uint8_t *src, int vlan,
		       uint64_t gap_us, size_t mss)
{
	static uint8_t packet[VNET_HEADER + PATTERN_MAX_FRAME + 4];
	uint8_t *frame = packet + VNET_HEADER;
	uint64_t position = 0, sent = 0, bytes = 0;
	int fd = open_socket(interface, false);

	for (uint32_t round = 0; round < t->count; round++) {
		for (size_t i = 0; i < t->size_count; i++) {
			struct virtio_net_hdr header = { 0 };
			uint64_t wait_until = now_us() + gap_us;
			size_t link, len = build_frame(frame, t, dst, src, vlan, position, t->sizes[i], &link);
			size_t payload = t->sizes[i] - frame_overhead(t->proto);

			if (t->proto != PROTO_PLAIN) {
				header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
				header.csum_start = (uint16_t)(link + network_header(t->proto));
				header.csum_offset = 16;
				if (payload > mss) {
					header.gso_type = t->proto == PROTO_TCP4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
					header.gso_size = (uint16_t)mss;
					header.hdr_len = (uint16_t)(len - payload);
				}
			}
			memcpy(packet, &header, VNET_HEADER);
			while (send(fd, packet, VNET_HEADER + len, 0) < 0) {
				if (errno != ENOBUFS && errno != EINTR && errno != EAGAIN) {
					fprintf(stderr, "frames: a frame of %zu bytes was refused\n", t->sizes[i]);
					fail("send");
				}
				usleep(100);
			}
			position += t->proto == PROTO_PLAIN ? 1 : payload;
			bytes += len;
			sent++;
			for (uint64_t now; (now = now_us()) < wait_until;)
				usleep((useconds_t)(wait_until - now));
		}
	}
	printf("{\"sent\":%llu,\"bytes\":%llu}\n", (unsigned long long)sent, (unsigned long long)bytes);
	return 0;
}

/* The VLAN id that the kernel took out of the frame, or PATTERN_NO_TAG. */
static int stripped_tag(struct msghdr *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		struct tpacket_auxdata aux;
		if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA)
			continue;
		memcpy(&aux, CMSG_DATA(c), sizeof(aux));
		if (aux.tp_status & TP_STATUS_VLAN_VALID)
			return aux.tp_vlan_tci & 0xfff;
	}
	return PATTERN_NO_TAG;
}

static int receive_frames(const char *interface, const struct traffic *t, int vlan, uint64_t timeout_ms)
{
	static uint8_t packet[VNET_HEADER + 2 * PATTERN_MAX_FRAME];
	int fd = open_socket(interface, true);
	uint64_t deadline = now_us() + timeout_ms * 1000;
	bool lingering = false;
	struct report report;

	report_init(&report, t);
	printf("{\"ready\":true}\n");
	fflush(stdout);
	for (;;) {
		char control[256];
		struct iovec part = { packet, sizeof(packet) };
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
		struct pollfd readable = { .fd = fd, .events = POLLIN };
		struct virtio_net_hdr header;
		uint64_t now = now_us();
		ssize_t n;

		if (!lingering && report_complete(&report)) { /* a moment more, for what arrives twice */
			lingering = true;
			deadline = now + 100000;
		}
		if (now >= deadline || poll(&readable, 1, (int)((deadline - now) / 1000 + 1)) == 0)
			break;
		n = recvmsg(fd, &message, MSG_DONTWAIT);
		if (n < VNET_HEADER) {
			if (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENETDOWN)
				fail("recvmsg");
			continue;
		}
		memcpy(&header, packet, VNET_HEADER);
		verify_frame(&report, t, packet + VNET_HEADER, (size_t)n - VNET_HEADER, stripped_tag(&message), vlan,
			     header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM	 ? CHECKSUM_PARTIAL
			     : header.flags & VIRTIO_NET_HDR_F_DATA_VALID ? CHECKSUM_TRUSTED
									  : CHECKSUM_FULL);
	}
	report_print(stdout, &report);
	printf("\n");
	return 0;
}

static int set_feature(const char *interface, const char *feature, const char *value)
{
	static const struct {
		const char *name;
		uint32_t command;
	} features[] = { { "gro", ETHTOOL_SGRO },     { "gso", ETHTOOL_SGSO },	  { "tso", ETHTOOL_STSO },
			 { "tx", ETHTOOL_STXCSUM }, { "rx", ETHTOOL_SRXCSUM } };

	for (size_t i = 0; i < sizeof(features) / sizeof(*features); i++) {
		struct ethtool_value argument = { features[i].command, !strcmp(value, "on") };
		struct ifreq request = { .ifr_data = (void *)&argument };
		if (strcmp(feature, features[i].name))
			continue;
		strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
		if (ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCETHTOOL, &request) < 0)
			fail(feature);
		return 0;
	}
	misuse("the features are gro, gso, tso, tx and rx");
	return 2;
}

int main(int argc, char **argv)
{
	struct traffic traffic = { .seed = 1, .count = 1 };
	uint8_t dst[6], src[6];
	bool has_dst = false, has_src = false;
	uint64_t gap_us = 0, timeout_ms = 10000;
	size_t mss = 1448;
	int vlan = PATTERN_NO_TAG;

	if (argc < 3)
		misuse("usage: frames send|receive|set INTERFACE ...");
	if (!strcmp(argv[1], "set")) {
		if (argc != 5)
			misuse("usage: frames set INTERFACE FEATURE on|off");
		return set_feature(argv[2], argv[3], argv[4]);
	}
	for (int i = 3; i + 1 < argc; i += 2) {
		const char *name = argv[i], *value = argv[i + 1];
		if (!strcmp(name, "--dst"))
			read_mac(dst, value), has_dst = true;
		else if (!strcmp(name, "--src"))
			read_mac(src, value), has_src = true;
		else if (!strcmp(name, "--vlan"))
			vlan = parse_tag(value);
		else if (!strcmp(name, "--gap-us"))
			gap_us = strtoul(value, NULL, 0);
		else if (!strcmp(name, "--timeout-ms"))
			timeout_ms = strtoul(value, NULL, 0);
		else if (!strcmp(name, "--mss"))
			mss = strtoul(value, NULL, 0);
		else if (!traffic_option(&traffic, name, value))
			misuse(name);
	}
	if (argc % 2 == 0)
		misuse("an option lacks its value");
	if (traffic_error(&traffic))
		misuse(traffic_error(&traffic));
	if (!strcmp(argv[1], "receive"))
		return receive_frames(argv[2], &traffic, vlan, timeout_ms);
	if (strcmp(argv[1], "send") || !has_dst)
		misuse("send needs --dst MAC");
	if (!has_src)
		own_mac(src, argv[2]);
	return send_frames(argv[2], &traffic, dst, src, vlan, gap_us, mss);
}
