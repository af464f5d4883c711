/*
 * A DPDK program with two virtio-user ports: sends the frames of pattern.h from port 0 to port 1 and back, verifies
 * every byte and prints one JSON object.
 *
 *   dpdk_frames --port SPEC --port SPEC [--vlan0 VID] [--vlan1 VID] [--lro 0|1] [--rx-checksum 0|1] [--mss N]
 *               [--segment N] [--mbuf N] [--window N] [--timeout-ms N] [--cpu N] [--huge 1] [--reconnect 1] TRAFFIC
 *   SPEC: the arguments of a net_virtio_user device, such as path=/run/x.sock,queues=1,queue_size=256,mrg_rxbuf=1
 *   TRAFFIC: [--proto plain|tcp4|tcp6] [--seed N] --sizes A,B,... --count N
 *
 * --vlanN tags what port N sends and is the tag that port N must receive. Frames larger than --segment bytes are chains
 * of mbufs. TCP frames larger than the segment size leave with a segmentation offload, which the device must offer;
 * --lro 1 lets the device deliver super-frames whole. --window frames are in flight at most, so that nothing is lost
 * for want of ring space. Received frames must fit into --mbuf bytes unless the port has mrg_rxbuf=1.
 * --reconnect 1, for ports with server=1: watches the links, which is what makes DPDK accept a back end that comes back,
 * and goes on when frames were lost meanwhile.
 * Memory: --no-huge, where DPDK takes a memfd that it can share over vhost-user; --huge 1 takes hugepages instead.
 *
 * Exit status: 0 the report was printed (whatever it says), 1 DPDK refused something, 2 wrong arguments, 3 the device
 * does not offer an offload that was asked for.
 */
#include <unistd.h>

#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "pattern.h"

#define BURST 32

struct options {
	const char *spec[2];
	int vlan[2];
	size_t mss, segment, mbuf;
	uint64_t window, timeout_ms;
	const char *cpu;
	bool lro, rx_checksum, huge, reconnect;
};

struct port {
	uint16_t id;
	struct rte_ether_addr mac;
	uint64_t rx_offloads, tx_offloads; /* what the device offers */
};

static struct rte_mempool *pool;
static struct rte_mempool *send_pool;

static void refuse(int status, const char *what)
{
	fprintf(stderr, "dpdk_frames: %s\n", what);
	exit(status);
}

static uint64_t now_ms(void) { return rte_get_timer_cycles() * 1000 / rte_get_timer_hz(); }

static void start_eal(const struct options *o)
{
	static char device[2][1024], prefix[64];
	char *arguments[32];
	int n = 0;

	arguments[n++] = "dpdk_frames";
	arguments[n++] = "-l";
	arguments[n++] = (char *)o->cpu;
	arguments[n++] = "--no-pci";
	arguments[n++] = "--no-telemetry";
	arguments[n++] = "--no-shconf";
	arguments[n++] = "-m";
	arguments[n++] = "256";
	snprintf(prefix, sizeof(prefix), "--file-prefix=frames%d", (int)getpid());
	arguments[n++] = prefix;
	arguments[n++] = "--log-level=4";
	/* The packed ring's vector path wants this leave; the split ring's does not care. */
	arguments[n++] = "--force-max-simd-bitwidth=512";
	if (o->huge) {
		arguments[n++] = "--in-memory";
		arguments[n++] = "--single-file-segments";
	} else {
		arguments[n++] = "--no-huge";
	}
	for (int i = 0; i < 2; i++) {
		snprintf(device[i], sizeof(device[i]), "--vdev=net_virtio_user%d,%s", i, o->spec[i]);
		arguments[n++] = device[i];
	}
	if (rte_eal_init(n, arguments) < 0)
		refuse(1, "the environment layer did not start (is the socket there, is there memory?)");
	if (rte_eth_dev_count_avail() != 2)
		refuse(1, "not both ports came up");
}

static void start_port(struct port *port, uint16_t id, const struct options *o, const struct traffic *t)
{
	struct rte_eth_conf conf = { 0 };
	struct rte_eth_dev_info info;
	struct rte_eth_rxconf rx;
	struct rte_eth_txconf tx;
	size_t largest = 60, room = o->mbuf;
	uint16_t rx_ring = 256, tx_ring = 256;

	port->id = id;
	if (rte_eth_dev_info_get(id, &info) || rte_eth_macaddr_get(id, &port->mac))
		refuse(1, "a port does not tell what it is");
	port->rx_offloads = info.rx_offload_capa;
	port->tx_offloads = info.tx_offload_capa;
	for (size_t i = 0; i < t->size_count; i++)
		largest = RTE_MAX(largest, t->sizes[i]);
	conf.rxmode.mtu = (uint32_t)RTE_MIN(RTE_MAX(largest - 14, (size_t)1500), (size_t)info.max_mtu);
	if (strstr(o->spec[id], "mrg_rxbuf=1"))
		conf.rxmode.offloads |= info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
	else
		conf.rxmode.mtu = (uint32_t)RTE_MIN((size_t)conf.rxmode.mtu, room - 18);
	if (largest > o->segment)
		conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
	if (t->proto != PROTO_PLAIN) {
		conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
		if (largest - frame_overhead(t->proto) > o->mss)
			conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_TCP_TSO;
		if (o->rx_checksum)
			conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
		if (o->lro)
			conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_TCP_LRO;
		conf.rxmode.max_lro_pkt_size = info.max_lro_pkt_size;
	}
	if ((conf.txmode.offloads & ~info.tx_offload_capa) || (conf.rxmode.offloads & ~info.rx_offload_capa)) {
		fprintf(stderr, "dpdk_frames: port %u offers rx %#llx tx %#llx, wanted rx %#llx tx %#llx\n", id,
			(unsigned long long)info.rx_offload_capa, (unsigned long long)info.tx_offload_capa,
			(unsigned long long)conf.rxmode.offloads, (unsigned long long)conf.txmode.offloads);
		refuse(3, "the device does not offer an offload");
	}
	rx = info.default_rxconf;
	rx.offloads = conf.rxmode.offloads;
	tx = info.default_txconf;
	tx.offloads = conf.txmode.offloads;
	if (rte_eth_dev_configure(id, 1, 1, &conf))
		refuse(1, "a port cannot be configured like this");
	if (rte_eth_dev_adjust_nb_rx_tx_desc(id, &rx_ring, &tx_ring) ||
	    rte_eth_rx_queue_setup(id, 0, rx_ring, 0, &rx, pool) || rte_eth_tx_queue_setup(id, 0, tx_ring, 0, &tx) ||
	    rte_eth_dev_start(id))
		refuse(1, "a port does not start");
	rte_eth_promiscuous_enable(id);
}

/* A frame as a chain of mbufs of at most `segment` bytes each. */
static struct rte_mbuf *chain(const uint8_t *frame, size_t len, size_t segment)
{
	struct rte_mbuf *head = NULL, *part;

	for (size_t at = 0; at < len; at += segment) {
		size_t n = RTE_MIN(segment, len - at);
		part = rte_pktmbuf_alloc(send_pool);
		if (!part) {
			rte_pktmbuf_free(head);
			return NULL;
		}
		memcpy(rte_pktmbuf_append(part, (uint16_t)n), frame + at, n);
		if (!head)
			head = part;
		else if (rte_pktmbuf_chain(head, part))
			refuse(2, "--segment cuts a frame into too many parts");
	}
	return head;
}

static void mark_offloads(struct rte_mbuf *m, const struct traffic *t, size_t link, size_t payload, size_t mss)
{
	if (t->proto == PROTO_PLAIN)
		return;
	m->l2_len = link;
	m->l3_len = network_header(t->proto);
	m->l4_len = 20;
	m->ol_flags |= t->proto == PROTO_TCP4 ? RTE_MBUF_F_TX_IPV4 : RTE_MBUF_F_TX_IPV6;
	m->ol_flags |= RTE_MBUF_F_TX_TCP_CKSUM;
	if (payload > mss) {
		m->ol_flags |= RTE_MBUF_F_TX_TCP_SEG;
		m->tso_segsz = (uint16_t)mss;
	}
}

static enum checksum checksum_state(const struct rte_mbuf *m, const struct options *o)
{
	uint64_t l4 = m->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;

	if (!o->rx_checksum && !o->lro)
		return CHECKSUM_FULL;
	if (l4 == RTE_MBUF_F_RX_L4_CKSUM_NONE)
		return CHECKSUM_PARTIAL; /* whoever sent it left the rest to us */
	return l4 == RTE_MBUF_F_RX_L4_CKSUM_GOOD ? CHECKSUM_TRUSTED : CHECKSUM_FULL;
}

/* Takes what has arrived; returns the number of frames. */
static uint64_t receive(const struct port *port, const struct traffic *t, const struct options *o, struct report *r)
{
	static uint8_t linear[2 * PATTERN_MAX_FRAME];
	struct rte_mbuf *burst[BURST];
	uint16_t n = rte_eth_rx_burst(port->id, 0, burst, BURST);

	for (uint16_t i = 0; i < n; i++) {
		uint32_t len = rte_pktmbuf_pkt_len(burst[i]);
		const uint8_t *bytes = len <= sizeof(linear) ? rte_pktmbuf_read(burst[i], 0, len, linear) : NULL;
		if (bytes && r)
			verify_frame(r, t, bytes, len, PATTERN_NO_TAG, o->vlan[port->id], checksum_state(burst[i], o));
		rte_pktmbuf_free(burst[i]);
	}
	return n;
}

/* Asks both ports for their links now and then: in doing so, DPDK notices that a back end has gone and accepts its successor. */
static void watch_links(const struct options *o)
{
	static uint64_t next;
	struct rte_eth_link link;

	if (!o->reconnect || now_ms() < next)
		return;
	/* Not faster: DPDK tidies up on another thread after it has noticed, and breaks if it is asked again meanwhile. */
	next = now_ms() + 250;
	rte_eth_link_get_nowait(0, &link);
	rte_eth_link_get_nowait(1, &link);
}

/*
 * Sends everything from one port to the other, with so little in flight that the receiver's ring of 256 buffers has room
 * even if each segment of a super-frame takes one: at most `window` frames, and 96 times what fits into a buffer.
 */
static void run_direction(const struct port *from, const struct port *to, const struct traffic *t, const struct options *o,
			  struct report *r)
{
	static uint8_t frame[PATTERN_MAX_FRAME + 4];
	uint64_t deadline = now_ms() + o->timeout_ms, position = 0, bytes = 0, linger = 0;
	uint64_t total = (uint64_t)t->count * t->size_count, next = 0, arrived = 0, lost = 0, heard = now_ms();
	uint64_t budget = 96 * RTE_MIN(o->mbuf, o->mss);
	/* For each frame sent: what the report's `received` is when it has arrived, and the bytes sent up to it. */
	struct mark {
		uint64_t received, bytes;
	} *marks = calloc(total, sizeof(*marks));

	if (!marks)
		refuse(1, "no memory for the marks");
	report_init(r, t);
	while (now_ms() < deadline) {
		while (arrived < next && marks[arrived].received <= r->received + lost)
			arrived++;
		while (next < total && next - arrived < o->window) {
			size_t size = t->sizes[next % t->size_count], link, payload = size - frame_overhead(t->proto), len;
			uint64_t in_flight = bytes - (arrived ? marks[arrived - 1].bytes : 0);
			struct rte_mbuf *m;

			if (next > arrived && in_flight + size > budget)
				break;
			len = build_frame(frame, t, (const uint8_t *)&to->mac, (const uint8_t *)&from->mac,
					  o->vlan[from->id], position, size, &link);
			m = chain(frame, len, o->segment);
			if (!m)
				break;
			mark_offloads(m, t, link, payload, o->mss);
			if (rte_eth_tx_prepare(from->id, 0, &m, 1) != 1)
				refuse(1, "a frame's offloads were refused");
			while (rte_eth_tx_burst(from->id, 0, &m, 1) != 1 && now_ms() < deadline) {
				watch_links(o);
				if (receive(to, t, o, r))
					heard = now_ms();
			}
			position += t->proto == PROTO_PLAIN ? 1 : payload;
			bytes += size;
			marks[next++] = (struct mark){ position, bytes };
		}
		if (receive(to, t, o, r))
			heard = now_ms();
		receive(from, t, o, NULL); /* what was flooded back is nobody's */
		watch_links(o);
		if (o->reconnect && next && now_ms() > heard + 500) {
			/* What is missing now does not come any more. */
			lost = marks[next - 1].received - r->received;
			heard = now_ms();
			if (next == total)
				break;
		}
		if (!linger && next == total && report_complete(r))
			linger = now_ms() + 50; /* for what arrives twice */
		if (linger && now_ms() >= linger)
			break;
	}
	free(marks);
}

/* Lets both ports speak once, so that a learning switch knows where they are; what arrives is thrown away. */
static void introduce(const struct port *ports, const struct traffic *t, const struct options *o)
{
	static const uint8_t everyone[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	struct traffic hello = { .proto = PROTO_PLAIN, .seed = ~t->seed, .count = 1 };
	uint64_t deadline = now_ms() + 5000;
	uint8_t frame[64];

	for (int i = 0; i < 2; i++) {
		uint64_t arrived = 0;
		size_t link, len = build_frame(frame, &hello, everyone, (const uint8_t *)&ports[i].mac, o->vlan[i], 0, 60, &link);
		while (!arrived && now_ms() < deadline) {
			struct rte_mbuf *m = chain(frame, len, o->segment);
			uint64_t again = now_ms() + 100;
			if (m && rte_eth_tx_burst(ports[i].id, 0, &m, 1) != 1)
				rte_pktmbuf_free(m);
			while (!arrived && now_ms() < again)
				arrived += receive(&ports[!i], t, o, NULL);
		}
	}
	for (uint64_t quiet = now_ms() + 50; now_ms() < quiet;) {
		receive(&ports[0], t, o, NULL);
		receive(&ports[1], t, o, NULL);
	}
}

int main(int argc, char **argv)
{
	struct options o = { .vlan = { PATTERN_NO_TAG, PATTERN_NO_TAG }, .mss = 1448, .segment = 2048, .mbuf = 2048,
			     .window = 16, .timeout_ms = 20000, .cpu = "0", .rx_checksum = true };
	struct traffic traffic = { .seed = 1, .count = 1 };
	struct report reports[2];
	struct port ports[2];
	int specs = 0;

	for (int i = 1; i + 1 < argc; i += 2) {
		const char *name = argv[i], *value = argv[i + 1];
		if (!strcmp(name, "--port") && specs < 2)
			o.spec[specs++] = value;
		else if (!strcmp(name, "--vlan0"))
			o.vlan[0] = parse_tag(value);
		else if (!strcmp(name, "--vlan1"))
			o.vlan[1] = parse_tag(value);
		else if (!strcmp(name, "--lro"))
			o.lro = atoi(value);
		else if (!strcmp(name, "--rx-checksum"))
			o.rx_checksum = atoi(value);
		else if (!strcmp(name, "--mss"))
			o.mss = strtoul(value, NULL, 0);
		else if (!strcmp(name, "--segment"))
			o.segment = strtoul(value, NULL, 0);
		else if (!strcmp(name, "--mbuf"))
			o.mbuf = strtoul(value, NULL, 0);
		else if (!strcmp(name, "--window"))
			o.window = strtoul(value, NULL, 0);
		else if (!strcmp(name, "--timeout-ms"))
			o.timeout_ms = strtoul(value, NULL, 0);
		else if (!strcmp(name, "--cpu"))
			o.cpu = value;
		else if (!strcmp(name, "--huge"))
			o.huge = atoi(value);
		else if (!strcmp(name, "--reconnect"))
			o.reconnect = atoi(value);
		else if (!traffic_option(&traffic, name, value))
			refuse(2, name);
	}
	if (specs != 2 || traffic_error(&traffic) || o.segment < 64 || o.mbuf > 65535 - RTE_PKTMBUF_HEADROOM)
		refuse(2, traffic_error(&traffic) ? traffic_error(&traffic) : "two --port, --segment >= 64, --mbuf <= 65407");
	start_eal(&o);
	pool = rte_pktmbuf_pool_create("receive", (unsigned)RTE_MIN((96u << 20) / (o.mbuf + 512), 8191u), 0, 0,
				       (uint16_t)(o.mbuf + RTE_PKTMBUF_HEADROOM), SOCKET_ID_ANY);
	send_pool = rte_pktmbuf_pool_create("send", (unsigned)RTE_MIN((64u << 20) / (o.segment + 512), 8191u), 0, 0,
					    (uint16_t)(RTE_MIN(o.segment, 65000u) + RTE_PKTMBUF_HEADROOM), SOCKET_ID_ANY);
	if (!pool || !send_pool)
		refuse(1, "no memory for the mbufs");
	for (uint16_t i = 0; i < 2; i++)
		start_port(&ports[i], i, &o, &traffic);
	introduce(ports, &traffic, &o);
	run_direction(&ports[0], &ports[1], &traffic, &o, &reports[0]);
	run_direction(&ports[1], &ports[0], &traffic, &o, &reports[1]);
	printf("{\"ports\":[");
	for (int i = 0; i < 2; i++)
		printf("%s{\"rx_offloads\":%llu,\"tx_offloads\":%llu}", i ? "," : "", (unsigned long long)ports[i].rx_offloads,
		       (unsigned long long)ports[i].tx_offloads);
	printf("],\"directions\":[");
	report_print(stdout, &reports[0]);
	printf(",");
	report_print(stdout, &reports[1]);
	printf("],\"clean\":%s}\n", report_clean(&reports[0]) && report_clean(&reports[1]) ? "true" : "false");
	fflush(stdout);
	for (int i = 0; i < 2; i++) {
		rte_eth_dev_stop(ports[i].id);
		rte_eth_dev_close(ports[i].id);
	}
	rte_eal_cleanup();
	return 0;
}
